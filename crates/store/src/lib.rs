//! PostgreSQL, vectors and cache: what Lares remembers
