//! How the C library's allocator gives memory back.

/// Heaps that threads share. By default there are eight for each CPU, and each of them keeps what it ever needed.
const ARENAS: libc::c_int = 2;
/// From this size on an allocation is a mapping of its own, which goes when it is freed. By default the limit moves up to
/// 32 MiB, and holes that size stay in the heap.
const OWN_MAPPING: libc::c_int = 256 << 10;
/// Free memory at the end of a heap beyond which it is given back.
const KEPT: libc::c_int = 256 << 10;

/// Called once, before there is a second thread.
pub fn give_back_what_is_free() {
    for (parameter, value) in
        [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, OWN_MAPPING), (libc::M_TRIM_THRESHOLD, KEPT)]
    {
        // SAFETY: two integers; what they mean is up to the allocator, which refuses what it does not know. It costs
        // memory then, nothing else.
        unsafe { libc::mallopt(parameter, value) };
    }
}
