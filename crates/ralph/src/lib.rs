//! The loop: run an agent in a git worktree until the check exits 0
