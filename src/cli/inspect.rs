//! `esker inspect`: what is in a physical file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::NotTried;
use crate::format::{self, FooterEntry, FormatError, Header, ReadAt};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The physical file
    file: PathBuf,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let named = || args.file.display().to_string();
    let file = std::fs::File::open(&args.file).map_err(|error| NotTried::file(&args.file, &error))?;
    let len = file.metadata().with_context(named)?.len();
    let mut bytes = [0; format::HEADER_BYTES as usize];
    let read = ReadAt::read_at(&file, 0, &mut bytes).with_context(named)?;
    let header = format::decode_header(&bytes[..read]).with_context(named)?;
    match format::read_index(&file, len) {
        Ok((header, entries)) => {
            print_head(args, &header, len, "closed")?;
            entries.iter().try_for_each(|entry| print_entry(args, entry))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(FormatError::Read(error)) => Err(error).with_context(named),
        Err(reason) => {
            let scan = format::scan(&file, 0, len).with_context(named)?;
            print_head(args, &header, len, "not closed")?;
            eprintln!("esker: {reason}; {} of {len} bytes are whole frames:", scan.valid_len);
            for frame in &scan.frames {
                println!(
                    "frame {:>6}  offset {:>12}  {:>12} bytes  crc32c {:08x}",
                    frame.index, frame.offset, frame.len, frame.crc32c
                );
            }
            Ok(ExitCode::from(1))
        }
    }
}

fn print_head(args: &InspectArgs, header: &Header, len: u64, state: &str) -> anyhow::Result<()> {
    if args.json {
        let head = serde_json::json!({"file": args.file, "state": state, "len": len, "epoch": header.epoch, "created_ms": header.created.0});
        println!("{head}");
    } else {
        println!(
            "{}: {state}, {len} bytes, epoch {}, created {} ms",
            args.file.display(),
            header.epoch,
            header.created.0
        );
    }
    Ok(())
}

fn print_entry(args: &InspectArgs, entry: &FooterEntry) -> anyhow::Result<()> {
    let about = &entry.about;
    let checkpoint = about.checkpoint.map(|checkpoint| checkpoint.0);
    if args.json {
        let subtask = about.writer.subtask.as_ref().map(ToString::to_string);
        println!(
            "{}",
            serde_json::json!({
                "segment": entry.id.to_string(), "offset": entry.offset, "len": entry.len,
                "crc32c": format!("{:08x}", entry.crc32c), "job": about.job.as_str(), "scope": about.scope,
                "checkpoint": checkpoint, "subtask": subtask,
                "task_manager": about.writer.task_manager.as_ref().map(ToString::to_string),
                "name": about.name.as_ref().map(ToString::to_string),
            })
        );
    } else {
        let checkpoint = checkpoint.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let name = about.name.as_ref().map_or("-", |name| name.as_str());
        println!(
            "{}  offset {:>10}  {:>10} bytes  crc32c {:08x}  {:<9} chk {checkpoint:>5}  job {}  {name}",
            entry.id, entry.offset, entry.len, entry.crc32c, about.scope, about.job
        );
    }
    Ok(())
}
