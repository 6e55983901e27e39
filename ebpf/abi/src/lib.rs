//! keelson-ebpf-abi
