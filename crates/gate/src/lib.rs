//! What every HTTP surface of Lares shares: keys, roles, errors, health, metrics
