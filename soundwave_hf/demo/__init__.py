"""What `soundwave-hf demo` runs."""
