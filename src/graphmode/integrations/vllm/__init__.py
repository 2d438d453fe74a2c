"""graphmode in vLLM: the platform plug-in, and attention without a Python call per layer."""
