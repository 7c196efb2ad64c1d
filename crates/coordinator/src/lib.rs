//! The OpenAI-compatible door
