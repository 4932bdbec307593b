//! `bundle` and `unbundle`: the program with its models in one archive, for machines without a network.

use std::env;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::output::cannot_print;
use crate::bundle::{self, BundleContents};
use crate::config::{BundleArgs, RegistryConfig, UnbundleArgs};
use crate::error::{Error, Kind, Result};
use crate::registry::{Registry, readable_size};

/// Writes a bundle with this program, and says to `out` how to use it.
///
/// # Errors
/// When a model cannot be had, a file cannot be read or written, or `out` is closed.
pub fn pack(args: BundleArgs, out: &mut impl Write) -> Result<()> {
    let BundleArgs { file, model, embedding_model, rerank_model, no_onnx_runtime, registry } = args;
    let program = env::current_exe()
        .map_err(|e| Error::new(Kind::Config, format!("cannot find the file of this program: {e}")))?;
    let registry = Registry::new(RegistryConfig::resolve(registry)?);
    let contents =
        BundleContents { models: model, embedding_model, rerank_model, has_onnx_runtime: !no_onnx_runtime };
    let n_bytes = bundle::pack(&file, &program, &contents, &registry)?;
    let name = file.display();
    writeln!(
        out,
        "wrote {name}, {}. On the other machine:\n  tar xf {name} predict-otron-9000\n  ./predict-otron-9000 unbundle \
         {name} --serve",
        readable_size(n_bytes)
    )
    .map_err(cannot_print)
}

/// Unpacks a bundle, and says to `out` how to start its server, or starts it in place of this process.
///
/// # Errors
/// When the bundle is damaged or for another platform, a file cannot be written, or the server cannot be started.
pub fn unpack(args: &UnbundleArgs, out: &mut impl Write) -> Result<()> {
    let unpacked = bundle::unpack(&args.file, &args.to)?;
    let (program, config) = (unpacked.program.display(), unpacked.config.display());
    writeln!(
        out,
        "{} files verified; the server is started by\n  {program} serve --config {config}",
        unpacked.n_files
    )
    .and_then(|()| out.flush())
    .map_err(cannot_print)?;
    if !args.serve {
        return Ok(());
    }
    let error = Command::new(&unpacked.program).arg("serve").arg("--config").arg(&unpacked.config).exec();
    Err(Error::new(Kind::Config, format!("cannot start {program}: {error}")))
}
