//! keelson-images
