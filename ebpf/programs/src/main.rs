//! The BPF programs of a node. Built by `cargo xtask build-ebpf`; the object is committed under `ebpf/prebuilt`.
//!
//! `socket` translates Service addresses when a socket connects or sends (no packet is ever touched).

#![no_std]
#![no_main]

mod socket;

/// The licence that the kernel asks for before it allows GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program in which this can be reached.
    loop {}
}
