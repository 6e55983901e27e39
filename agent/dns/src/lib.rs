//! keelson-dns
