//! keelson-scheduler
