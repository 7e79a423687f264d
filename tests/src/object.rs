//! The BPF objects under test: where they are and how large their maps are made.

use anyhow::{Context, Result, bail};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use lb_common::maglev::blocks;
use std::path::PathBuf;

/// Sizes of the maps of `lb`: small, so that loading is quick and full tables are within reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    pub services: u32,
    pub backends: u32,
    /// Buckets of one half of the endpoint table, a power of two.
    pub buckets: u32,
    /// Groups of the flow table, a power of two.
    pub groups: u32,
    /// A power of two.
    pub stashes: u32,
    /// Entries of a Maglev table, a prime.
    pub maglev: u32,
    /// Groups of the table of learned sessions, a power of two.
    pub homes: u32,
    /// Pools of listed names.
    pub pools: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            services: 4,
            backends: 16,
            buckets: 64,
            groups: 8,
            stashes: 16,
            maglev: 251,
            homes: 8,
            pools: 16,
        }
    }
}

impl Sizes {
    /// The first block of a half of a Maglev table: of a service, or of a pool behind all services.
    pub fn maglev_base(&self, table: Table, half: u32) -> u32 {
        let before = match table {
            Table::Service(id) => u32::from(id),
            Table::Pool(index) => self.services + index,
        };
        (2 * before + half) * blocks(self.maglev)
    }

    /// Buckets in each half of the table of QUIC server ids.
    pub fn server_buckets(&self) -> u32 {
        (self.backends * lb_common::quic_lb::servers::BUCKETS).next_power_of_two()
    }

    /// Room for tens of thousands of connections at once.
    pub fn large() -> Self {
        Self { groups: 1 << 14, stashes: 1024, ..Self::default() }
    }
}

/// Whose Maglev table it is.
#[derive(Clone, Copy, Debug)]
pub enum Table {
    Service(u16),
    Pool(u32),
}

/// Loads the product's object.
pub fn load_lb(sizes: Sizes) -> Result<Ebpf> {
    load_lb_with(sizes, &mut EbpfLoader::new())
}

/// Loads the product's object with what the loader was told besides.
pub fn load_lb_with<'a>(sizes: Sizes, loader: &mut EbpfLoader<'a>) -> Result<Ebpf> {
    let path = path_of("lb")?;
    loader
        .map_max_entries("ENDPOINTS", 2 * sizes.buckets)
        .map_max_entries("SERVICES", sizes.services)
        .map_max_entries("BACKENDS", sizes.backends)
        .map_max_entries("MAGLEV", sizes.maglev_base(Table::Pool(sizes.pools + 1), 0))
        .map_max_entries("POOLS", sizes.pools + 1)
        .map_max_entries("FLOWS", sizes.groups * lb_common::flow::GROUP as u32)
        .map_max_entries("FLOW_KEYS", sizes.groups * lb_common::flow::GROUP as u32)
        .map_max_entries("HOMES", sizes.homes * lb_common::home::GROUP as u32)
        .map_max_entries("LIVE", sizes.backends)
        .map_max_entries("WAITING", sizes.backends)
        .map_max_entries("USES", sizes.services)
        .map_max_entries("OVERFLOWS", sizes.groups)
        .map_max_entries("STASHES", sizes.stashes + aya::util::nr_cpus().map_or(1, |n| n as u32))
        .map_max_entries("TAILS", sizes.stashes)
        .map_max_entries("QUIC_CONFIGS", sizes.services * lb_common::quic_lb::ROTATIONS)
        .map_max_entries("QUIC_SERVERS", 2 * sizes.server_buckets())
        .map_max_entries("SERVICE_COUNTERS", sizes.services)
        .map_max_entries("BACKEND_COUNTERS", sizes.backends)
        .map_max_entries("ABILITIES", sizes.backends)
        .load_file(&path)
        .with_context(|| format!("loading {}", path.display()))
}

/// Loads the programs that only tests use.
pub fn load_testbed() -> Result<Ebpf> {
    let path = path_of("testbed")?;
    Ebpf::load_file(&path).with_context(|| format!("loading {}", path.display()))
}

/// Loads a program into the kernel. When the verifier refuses it, the end of its log is what matters.
pub fn load_program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &str,
    load: fn(&mut P) -> Result<(), ProgramError>,
) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    let program: &mut P = program.try_into()?;
    match load(program) {
        Ok(()) => Ok(program),
        Err(error @ ProgramError::LoadError { .. }) => {
            bail!("the kernel refuses program {name}: {}", refusal(&error))
        }
        Err(error) => Err(error).with_context(|| format!("loading program {name}")),
    }
}

/// What the kernel said when it refused a program: its error, and the end of the verifier's log.
pub fn refusal(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return format!("{error}");
    };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(40)..].join("\n");
    format!("{io_error}; its log ends:\n{tail}")
}

/// `$LB_BPF_DIR/name`, or else `target/bpf/name` in the workspace.
pub fn path_of(name: &str) -> Result<PathBuf> {
    let dir = std::env::var_os("LB_BPF_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf")), PathBuf::from);
    let path = dir.join(name);
    path.canonicalize().with_context(|| {
        format!(
            "no BPF object at {}: `cargo xtask build` makes it, LB_BPF_DIR names another place",
            path.display()
        )
    })
}
