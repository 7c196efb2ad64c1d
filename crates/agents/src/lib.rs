//! Coding agents: the built-in one, and the confinement every run has
