//! keelson-podinit
