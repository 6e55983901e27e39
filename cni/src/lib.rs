//! keelson-cni
