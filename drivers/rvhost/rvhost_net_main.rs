// SPDX-License-Identifier: GPL-2.0
//! vhost-net in Rust: carries a guest's packets between its virtqueues and a network backend.
#![crate_name = "rvhost_net"]

mod backend;
mod chardev;
mod device;
mod front;
mod guest;
mod ioctl;
mod iotlb;
#[path = "../../rust/kext/mod.rs"]
mod kext;
mod log;
mod memtable;
mod message;
mod placement;
mod queue;
mod ring;
mod rx;
mod stats;
mod steering;
mod trace;
mod tx;
#[path = "../../rust/vcore/mod.rs"]
pub mod vcore;
mod virtqueue;
mod vring;
mod worker;

use kernel::prelude::*;

use kext::{
    chrdev::{
        Registration,
        DYNAMIC_MINOR,
        VHOST_NET_MINOR, //
    },
    netdev::Watch,
    param, //
};

module! {
    type: RvhostNet,
    name: "rvhost_net",
    authors: ["The rvhost developers"],
    description: "Host kernel accelerator for virtio net, in Rust",
    license: "GPL",
    alias: ["char-major-10-238", "devname:vhost-net"],
}

#[pin_data]
struct RvhostNet {
    #[pin]
    device: Registration<chardev::VhostNet>,
    #[pin]
    front: Registration<front::Front>,
    /// Dropped last: devices may be held until then.
    watch: Watch,
}

impl kernel::InPlaceModule for RvhostNet {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let name = param::devname();
        let minor = if name == c"vhost-net" {
            VHOST_NET_MINOR
        } else {
            DYNAMIC_MINOR
        };
        try_pin_init!(Self {
            watch: Watch::new()?,
            device <- Registration::new(name, minor, taken),
            front <- Registration::new(param::tapname(), DYNAMIC_MINOR, front_taken),
        })
    }
}

/// Says what to do about a name that another module has.
fn taken(name: &CStr) {
    pr_err!(
        "the device {name:?} exists already: C vhost_net is loaded or built in. \
         Unload it (modprobe -r vhost_net), or load this module beside it with devname=NAME\n"
    );
}

/// The same of the other device.
fn front_taken(name: &CStr) {
    pr_err!("the device {name:?} exists already: load this module with another tapname=NAME\n");
}
