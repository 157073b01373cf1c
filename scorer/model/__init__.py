"""One ONNX file: found, checked, opened and run."""
