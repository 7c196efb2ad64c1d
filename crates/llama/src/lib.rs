//! llama.cpp: GGUF metadata, server capabilities, options, memory, models
