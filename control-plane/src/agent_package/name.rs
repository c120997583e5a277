//! File names of agent packages: they say for which machines a package is. A name goes into a shell script, so nothing but plain
//! letters is let in.

use std::fmt;

/// A processor architecture, by Debian's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
    /// 32-bit ARM with hardware floating point.
    Armhf,
}

impl Architecture {
    /// Debian's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
            Architecture::Armhf => "armhf",
        }
    }

    fn of_debian(word: &str) -> Option<Architecture> {
        let all = [Architecture::Amd64, Architecture::Arm64, Architecture::Armhf];
        all.into_iter().find(|architecture| architecture.as_str() == word)
    }

    fn of_target(target: &str) -> Option<Architecture> {
        match target {
            "x86_64-unknown-linux-gnu" => Some(Architecture::Amd64),
            "aarch64-unknown-linux-gnu" => Some(Architecture::Arm64),
            "armv7-unknown-linux-gnueabihf" => Some(Architecture::Armhf),
            _ => None,
        }
    }
}

/// How a package is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For dpkg.
    Deb,
    /// With a script of its own.
    Tarball,
}

impl Format {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Deb => "deb",
            Format::Tarball => "tarball",
        }
    }
}

/// The name of a package file, with what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageName {
    file: String,
    /// The agent's version.
    pub version: String,
    /// For which machines.
    pub architecture: Architecture,
    /// How it is packed.
    pub format: Format,
}

/// A text that names no package.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no package of the agent: its name is skerry-agent_VERSION_ARCHITECTURE.deb or skerry-agent-VERSION-TARGET.tar.gz, \
     as packaging/release.sh makes it"
)]
pub struct BadPackageName(String);

/// Longer names are a mistake; they are kept in a database and printed in tables.
const NAME_BYTES_MAX: usize = 128;

impl PackageName {
    /// The file's name.
    pub fn as_str(&self) -> &str {
        &self.file
    }
}

impl std::str::FromStr for PackageName {
    type Err = BadPackageName;

    fn from_str(file: &str) -> Result<PackageName, BadPackageName> {
        parse(file).ok_or_else(|| BadPackageName(file.chars().take(NAME_BYTES_MAX).collect()))
    }
}

fn parse(file: &str) -> Option<PackageName> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-+~".contains(&c);
    if file.len() > NAME_BYTES_MAX || !file.bytes().all(plain) {
        return None;
    }
    let rest = file.strip_prefix("skerry-agent")?;
    let (version, architecture, format) = if let Some(rest) = rest.strip_suffix(".deb") {
        let (version, architecture) = rest.strip_prefix('_')?.split_once('_')?;
        (version, Architecture::of_debian(architecture)?, Format::Deb)
    } else {
        let rest = rest.strip_suffix(".tar.gz")?.strip_prefix('-')?;
        let targets = rest.match_indices('-').map(|(at, _)| rest.split_at(at));
        let mut known = targets.filter_map(|(version, target)| Some((version, Architecture::of_target(&target[1..])?)));
        let (version, architecture) = known.next()?;
        (version, architecture, Format::Tarball)
    };
    let versioned = version.starts_with(|c: char| c.is_ascii_digit());
    versioned.then(|| PackageName {
        file: file.to_owned(),
        version: version.to_owned(),
        architecture,
        format,
    })
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(file: &str, expect: Option<(&str, Architecture, Format)>) {
        let parsed = file.parse::<PackageName>().ok();
        let got = parsed
            .as_ref()
            .map(|name| (name.version.as_str(), name.architecture, name.format));
        assert_eq!(got, expect, "{file}");
    }

    #[test]
    fn what_a_release_makes_is_understood() {
        check(
            "skerry-agent_0.1.0-1_arm64.deb",
            Some(("0.1.0-1", Architecture::Arm64, Format::Deb)),
        );
        check(
            "skerry-agent_1.0.0~rc1-1_armhf.deb",
            Some(("1.0.0~rc1-1", Architecture::Armhf, Format::Deb)),
        );
        let tarball = "skerry-agent-0.1.0-aarch64-unknown-linux-gnu.tar.gz";
        check(tarball, Some(("0.1.0", Architecture::Arm64, Format::Tarball)));
        let candidate = "skerry-agent-0.1.0-rc.1-armv7-unknown-linux-gnueabihf.tar.gz";
        check(candidate, Some(("0.1.0-rc.1", Architecture::Armhf, Format::Tarball)));
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("skerry-agent_0{}_arm64.deb", "0".repeat(NAME_BYTES_MAX));
        let bad = [
            "",
            "skerry-agent",
            "skerry-agent_0.1.0_riscv64.deb",
            "skerry-agent-0.1.0-sparc.tar.gz",
            "skerry_0.1.0_arm64.deb",
            "skerry-agent_$(reboot)_arm64.deb",
            "skerry-agent_0.1.0 _arm64.deb",
            "skerry-agent_../0.1_arm64.deb",
            "skerry-agent_evil_arm64.deb",
            &long,
        ];
        for file in bad {
            check(file, None);
        }
    }
}
