"""graphmode in vllm-ascend: its NPU platform with graphmode's compiler and graphs, and no file of its changed."""
