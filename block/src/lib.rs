//! Disk images: one thread-safe block trait, and the layers over it.
