"""One model a file, under the key names of its published weights."""
