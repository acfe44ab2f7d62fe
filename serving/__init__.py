"""The gateway: HTTP in, words out, through ONNX Runtime; no torch."""
