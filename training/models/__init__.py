"""The three architectures, each as its paper has it; no files are read here."""
