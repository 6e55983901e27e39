//! keelson-store
