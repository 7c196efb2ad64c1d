//! The child-process supervisor behind lares up
