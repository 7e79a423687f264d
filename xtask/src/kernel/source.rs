//! Kernels to test on: Debian's packaged ones, fetched by apt and unpacked below `target/kernels`, or any file.

use crate::{steps, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` will say it.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`; nothing where everything is built in.
    pub(crate) modules: Option<PathBuf>,
}

/// Finds the kernel of a word of `--kernel`: `6.1` is Debian's newest of that series, as made for virtual machines;
/// `6.1-generic` the one with every driver; anything with a slash, or that is a file, is a file.
pub(crate) fn find(word: &str) -> Result<Kernel> {
    let path = Path::new(word);
    if word.contains('/') || path.is_file() {
        return from_file(path);
    }
    let (series, flavour) = match word.strip_suffix("-generic") {
        Some(series) => (series, "amd64"),
        None => (word, "cloud-amd64"),
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(
        series.split('.').count() == 2 && series.split('.').all(digits),
        "--kernel {word}: neither a file, nor a series such as 6.1 (Debian's kernel for virtual machines) or 6.1-generic \
         (Debian's kernel with every driver)"
    );
    ensure!(
        cfg!(target_arch = "x86_64"),
        "Debian's kernels are fetched for x86-64 only; name a kernel of this machine's architecture by its file"
    );
    from_debian(series, flavour)
}

/// Any bzImage, with the modules that stand where packages put them: beside it, or in this system.
fn from_file(path: &Path) -> Result<Kernel> {
    let image = path.canonicalize().with_context(|| format!("--kernel {}: no such file", path.display()))?;
    let release = release(&fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?)
        .with_context(|| format!("--kernel {}: not a Linux kernel that x86-64 boots", path.display()))?;
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(above) = image.parent().and_then(Path::parent) {
        places.extend(["lib/modules", "usr/lib/modules"].map(|place| above.join(place)));
    }
    places.push("/lib/modules".into());
    let modules = places.iter().map(|place| place.join(&release)).find(|place| place.is_dir());
    if modules.is_none() {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        eprintln!(
            "kernel {release}: no modules in {}; it is taken to have everything built in",
            places.join(", ")
        );
    }
    Ok(Kernel { release, image, modules })
}

/// The release in the header of a bzImage (Documentation/arch/x86/boot.rst, `kernel_version`).
fn release(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16::from_le_bytes([*image.get(0x20e)?, *image.get(0x20f)?])) + 0x200;
    let text = image.get(at..)?.split(|byte| *byte == 0 || *byte == b' ').next()?;
    String::from_utf8(text.to_vec()).ok().filter(|text| !text.is_empty())
}

fn from_debian(series: &str, flavour: &str) -> Result<Kernel> {
    let place = match unpacked(series, flavour) {
        Ok(place) => place,
        Err(why) => {
            // Lists that were never fetched name none, and old ones a version that the mirror no longer has.
            let again = steps::run("apt-get update", Command::new("apt-get").arg("update"));
            match again.and_then(|()| unpacked(series, flavour)) {
                Ok(place) => place,
                Err(_) => {
                    let before = fetched_before(series, flavour)?.ok_or(why)?;
                    eprintln!("apt has nothing newer to give: {} is used", before.display());
                    before
                }
            }
        }
    };
    let boot = place.join("boot");
    let image = fs::read_dir(&boot)
        .with_context(|| format!("cannot read {}", boot.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
    let Some(image) = image else { bail!("{} has no kernel in it", place.display()) };
    from_file(&image)
}

/// Where the newest package that apt knows is unpacked, fetched now if need be.
fn unpacked(series: &str, flavour: &str) -> Result<PathBuf> {
    let package = newest(series, flavour)?.with_context(|| {
        format!(
            "apt has no package linux-image-{series}…-{flavour}; `apt-cache search linux-image` lists those it has, and \
             --kernel FILE takes any kernel"
        )
    })?;
    let place = directory()?.join(&package);
    if !place.is_dir() {
        fetch(&package, &place)?;
    }
    Ok(place)
}

/// The newest of those that are unpacked already.
fn fetched_before(series: &str, flavour: &str) -> Result<Option<PathBuf>> {
    let names = fs::read_dir(directory()?)?.filter_map(Result::ok);
    let names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let own = names.iter().filter(|name| is_package(name, series, flavour));
    own.max_by_key(|name| numbers(name)).map(|name| Ok(directory()?.join(name))).transpose()
}

/// Whether it is the name of a package with a kernel of that series and flavour.
fn is_package(name: &str, series: &str, flavour: &str) -> bool {
    let Some(rest) = name.strip_prefix("linux-image-") else { return false };
    let Some(rest) = rest.strip_prefix(series).and_then(|rest| rest.strip_prefix('.')) else { return false };
    let Some(version) = rest.strip_suffix(flavour).and_then(|rest| rest.strip_suffix('-')) else {
        return false;
    };
    // The plain flavour's name ends those of the others, too.
    version.starts_with(|c: char| c.is_ascii_digit())
        && !version.ends_with("-cloud")
        && !version.ends_with("-rt")
}

/// The package of the highest version.
fn newest(series: &str, flavour: &str) -> Result<Option<String>> {
    let output = Command::new("apt-cache").args(["search", "--names-only", "^linux-image-"]).output();
    let output = output
        .context("cannot start apt-cache: Debian's kernels need Debian's apt; --kernel FILE needs none")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.split(' ').next());
    let own = names.filter(|name| is_package(name, series, flavour));
    Ok(own.max_by_key(|name| numbers(name)).map(str::to_owned))
}

/// Every number in a name, in order: the way in which versions compare.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Fetches and unpacks a package, whole or not at all.
fn fetch(package: &str, place: &Path) -> Result<()> {
    let beside = place.with_file_name(format!("{package}.new"));
    if beside.exists() {
        fs::remove_dir_all(&beside).with_context(|| format!("cannot remove {}", beside.display()))?;
    }
    fs::create_dir_all(&beside).with_context(|| format!("cannot make {}", beside.display()))?;
    // As root, apt would want to fetch as another user, who cannot write here.
    let mut apt = Command::new("apt-get");
    apt.args(["-o", "APT::Sandbox::User=root", "download", package]).current_dir(&beside);
    steps::run(&format!("apt-get download {package}"), &mut apt)?;
    let archive = fs::read_dir(&beside)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no package"))?;
    steps::run(
        &format!("unpacking {package}"),
        Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&beside),
    )?;
    fs::remove_file(&archive)?;
    fs::rename(&beside, place).with_context(|| format!("cannot make {}", place.display()))
}

/// Kernels, images and logs.
pub(crate) fn directory() -> Result<PathBuf> {
    let directory = workspace::target().join("kernels");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_their_numbers() {
        let names = ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-57-cloud-amd64"];
        assert_eq!(names.iter().max_by_key(|name| numbers(name)), Some(&names[1]));
        let names = ["linux-image-6.12.99+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64"];
        assert_eq!(names.iter().max_by_key(|name| numbers(name)), Some(&names[1]));
    }

    #[test]
    fn packages_are_told_apart() {
        for (name, series, flavour, is_one) in [
            ("linux-image-6.1.0-57-cloud-amd64", "6.1", "cloud-amd64", true),
            ("linux-image-6.12.117+deb12-cloud-amd64", "6.12", "cloud-amd64", true),
            ("linux-image-6.12.117+deb12-cloud-amd64", "6.1", "cloud-amd64", false),
            ("linux-image-6.1.0-57-amd64", "6.1", "amd64", true),
            ("linux-image-6.1.0-57-cloud-amd64", "6.1", "amd64", false),
            ("linux-image-6.1.0-57-rt-amd64", "6.1", "amd64", false),
            ("linux-image-6.12-cloud-amd64", "6.12", "cloud-amd64", false),
            ("linux-image-6.1.0-57-cloud-amd64-dbg", "6.1", "cloud-amd64", false),
            ("linux-image-6.1.0-57-cloud-amd64-unsigned", "6.1", "cloud-amd64", false),
            ("linux-image-6.1.0-57-cloud-amd64.new", "6.1", "cloud-amd64", false),
        ] {
            assert_eq!(is_package(name, series, flavour), is_one, "{name} of {series} {flavour}");
        }
    }

    #[test]
    fn a_kernel_says_its_release_in_its_header() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30c].copy_from_slice(b"6.1.0-57 (x)");
        assert_eq!(release(&image).as_deref(), Some("6.1.0-57"));
        assert_eq!(release(b"#!/bin/sh"), None);
        assert_eq!(release(&[0; 0x400]), None);
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        for word in ["6", "six.one", "6.1.2", ""] {
            let said = find(word).unwrap_err().to_string();
            assert!(said.contains("series such as 6.1"), "{word}: {said}");
        }
        assert!(format!("{:#}", find("/no/such/vmlinuz").unwrap_err()).contains("no such file"));
        assert!(format!("{:#}", find("/bin/sh").unwrap_err()).contains("not a Linux kernel"));
    }
}
