"""Detection from files to files: what infer.sh does."""
