//! keelson-runtime
