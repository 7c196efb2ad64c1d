//! Intents of the configuration → flags of the `llama-server` binary that is there.
//!
//! A table maps each intent to the ways builds have offered it, the newest first. What is required and offered in no
//! way is an error that names the intent and every flag that was looked for; nothing is passed on a guess.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use lares_config::{KvType, Model, Numa, Toggle};

use crate::gguf::{Metadata, Pooling, ggml};
use crate::server::Server;

/// llama.cpp rounds a slot's context up to whole steps of this many tokens.
pub const CONTEXT_STEP: u64 = 256;

/// What a model's server is started with besides the model's own configuration.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    /// The name clients ask for: the key below `models`.
    pub name: &'a str,
    /// The GGUF file.
    pub file: &'a Path,
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// Threads where the model does not say: `machine::physical_cores()`.
    pub cores: u32,
    /// File with the keys the server asks for, one a line. Without it every local user may use the server: loopback
    /// keeps other machines out, not other people on this one.
    pub api_key_file: Option<&'a Path>,
}

/// Why a model cannot be served as configured by the binary that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// No way the binary offers.
    Unsupported {
        /// Key below `models.NAME`.
        key: &'static str,
        /// Every flag that was looked for.
        looked_for: Vec<String>,
    },
    /// More context than the model can use.
    ContextTooLong {
        /// Tokens asked for.
        asked: u32,
        /// Tokens the model was trained with.
        trained: u32,
    },
    /// A number that has to be at least one.
    Zero(&'static str),
    /// All slots together have more tokens than llama.cpp can count.
    TooManyTokens(u64),
    /// A quantised cache without flash attention.
    NeedsFlashAttention(KvType),
    /// Heads that do not fill whole blocks of the cache type.
    HeadSize {
        /// Type of the cache.
        kv_type: KvType,
        /// Elements in its block.
        block: u64,
        /// Elements of a head.
        head: u32,
    },
}

/// Everything that is wrong with one model, so that one edit can put all of it right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderError {
    /// Name of the model.
    pub model: String,
    /// What the binary is.
    pub server: String,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl std::error::Error for RenderError {}

impl fmt::Display for RenderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.model;
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match problem {
                Problem::Unsupported { key, looked_for } => write!(
                    f,
                    "models.{name}.{key}: {} offers no way to do it (looked for {}); change the key or use another \
                     llama-server",
                    self.server,
                    looked_for.join(", ")
                )?,
                Problem::ContextTooLong { asked, trained } => write!(
                    f,
                    "models.{name}.context_size is {asked}, but the model was trained with {trained} tokens of context; \
                     set it to at most {trained}"
                )?,
                Problem::Zero(key) => write!(f, "models.{name}.{key} is 0; set it to at least 1")?,
                Problem::TooManyTokens(tokens) => write!(
                    f,
                    "models.{name}: context_size × slots is {tokens} tokens, more than llama.cpp can count; lower one"
                )?,
                Problem::NeedsFlashAttention(kv) => write!(
                    f,
                    "models.{name}.kv_type is {}, which needs flash attention: set models.{name}.flash_attention to \
                     \"on\" or kv_type to \"f16\"",
                    kv_name(*kv)
                )?,
                Problem::HeadSize { kv_type, block, head } => write!(
                    f,
                    "models.{name}.kv_type is {}, whose blocks of {block} do not divide the model's heads of {head}; \
                     set it to \"f16\"",
                    kv_name(*kv_type)
                )?,
            }
        }
        Ok(())
    }
}

/// llama.cpp's name of a cache type.
pub(crate) fn kv_name(kv: KvType) -> &'static str {
    match kv {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Bf16 => "bf16",
        KvType::Q8_0 => "q8_0",
        KvType::Q5_1 => "q5_1",
        KvType::Q5_0 => "q5_0",
        KvType::Q4_1 => "q4_1",
        KvType::Q4_0 => "q4_0",
    }
}

/// Tokens computed at a time. An embedding has to be computed in one go, so there it is the whole context.
pub(crate) fn micro_batch(model: &Model) -> u32 {
    if model.embeddings { model.micro_batch_size.max(model.context_size) } else { model.micro_batch_size }
}

/// Everything an intent may look at.
struct Plan<'a> {
    model: &'a Model,
    metadata: &'a Metadata,
    server: &'a Server,
    placement: &'a Placement<'a>,
}

/// One way to say an intent.
#[derive(Debug, Clone)]
enum Way {
    /// A switch.
    Switch(&'static str),
    /// A flag with a value.
    Value(&'static str, OsString),
    /// What the binary does unasked.
    Nothing,
}

fn value<T: ToString + ?Sized>(flag: &'static str, value: &T) -> Way {
    Way::Value(flag, value.to_string().into())
}

impl Way {
    fn is_offered(&self, server: &Server) -> bool {
        match self {
            Self::Switch(name) => server.flag(name).is_some_and(|flag| flag.hint.is_none()),
            Self::Value(name, value) => {
                let value = value.to_string_lossy();
                server.flag(name).is_some_and(|flag| flag.accepts(&value))
            }
            Self::Nothing => true,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Switch(name) => (*name).to_owned(),
            Self::Value(name, value) => format!("{name} {}", value.to_string_lossy()),
            Self::Nothing => String::new(),
        }
    }
}

/// An intent: the key it comes from, and the ways to say it, the best first. No ways: there is nothing to say.
struct Intent {
    key: &'static str,
    ways: fn(&Plan<'_>) -> Vec<Way>,
}

const INTENTS: &[Intent] = &[
    Intent { key: "path", ways: |p| vec![Way::Value("--model", p.placement.file.into())] },
    Intent { key: "port", ways: |_| vec![value("--host", "127.0.0.1")] },
    Intent { key: "port", ways: |p| vec![value("--port", &p.placement.port)] },
    Intent { key: "aliases", ways: alias },
    Intent { key: "api_key_file", ways: |p| path("--api-key-file", p.placement.api_key_file) },
    Intent {
        key: "context_size",
        ways: |p| vec![value("--ctx-size", &(u64::from(p.model.context_size) * u64::from(p.model.slots)))],
    },
    Intent { key: "slots", ways: |p| vec![value("--parallel", &p.model.slots)] },
    // One cache for all slots would let one request take the context of the others. Builds without the flag have
    // a cache a slot anyway.
    Intent { key: "slots", ways: |_| vec![Way::Switch("--no-kv-unified"), Way::Nothing] },
    // A context that is full ends the answer; shifting would silently drop the oldest half of the prompt.
    Intent { key: "context_size", ways: |_| vec![Way::Switch("--no-context-shift"), Way::Nothing] },
    Intent { key: "kv_type", ways: |p| cache_type("--cache-type-k", p) },
    Intent { key: "kv_type", ways: |p| cache_type("--cache-type-v", p) },
    Intent { key: "flash_attention", ways: flash_attention },
    Intent { key: "lock_memory", ways: lock_memory },
    Intent { key: "numa", ways: |p| p.model.numa.map(|numa| value("--numa", numa_name(numa))).into_iter().collect() },
    Intent { key: "threads", ways: |p| vec![value("--threads", &p.model.threads.unwrap_or(p.placement.cores).max(1))] },
    Intent { key: "batch_size", ways: |p| vec![value("--batch-size", &p.model.batch_size.max(micro_batch(p.model)))] },
    Intent { key: "micro_batch_size", ways: |p| vec![value("--ubatch-size", &micro_batch(p.model))] },
    Intent { key: "gpu_layers", ways: |p| p.model.gpu_layers.map(|n| value("--gpu-layers", &n)).into_iter().collect() },
    Intent { key: "embeddings", ways: embeddings },
    Intent { key: "embeddings", ways: pooling },
    // Chats: tools need the model's own template.
    Intent { key: "source", ways: |p| unless(p.model.embeddings, vec![Way::Switch("--jinja"), Way::Nothing]) },
    // The cache of past conversations grows to 8 GiB by default, beyond any prediction. Slots keep their own prefix.
    Intent { key: "slots", ways: |_| vec![value("--cache-ram", &0), Way::Nothing] },
    Intent { key: "port", ways: |_| vec![Way::Switch("--metrics"), Way::Nothing] },
    // A smaller surface: no pages, no downloads, no scripts of web sites that talk to loopback.
    Intent { key: "port", ways: |_| vec![Way::Switch("--no-ui"), Way::Switch("--no-webui"), Way::Nothing] },
    Intent { key: "port", ways: |_| vec![Way::Switch("--offline"), Way::Nothing] },
    Intent { key: "port", ways: |_| vec![value("--cors-origins", "localhost"), Way::Nothing] },
    Intent { key: "port", ways: |_| vec![Way::Switch("--no-cors-credentials"), Way::Nothing] },
];

fn unless(condition: bool, ways: Vec<Way>) -> Vec<Way> {
    if condition { Vec::new() } else { ways }
}

fn path(flag: &'static str, path: Option<&Path>) -> Vec<Way> {
    path.map(|path| Way::Value(flag, path.into())).into_iter().collect()
}

/// All names where the build takes a list, else the first one: the coordinator knows the others itself.
fn alias(plan: &Plan<'_>) -> Vec<Way> {
    let list = plan.server.flag("--alias").is_some_and(|flag| flag.text.contains("comma-separated"));
    let mut names = vec![plan.placement.name];
    if list {
        names.extend(plan.model.aliases.iter().map(String::as_str).filter(|name| !name.contains(',')));
    }
    vec![value("--alias", &names.join(",")), Way::Nothing]
}

fn cache_type(flag: &'static str, plan: &Plan<'_>) -> Vec<Way> {
    let kv = plan.model.kv_type;
    let mut ways = vec![value(flag, kv_name(kv))];
    if kv == KvType::F16 {
        ways.push(Way::Nothing);
    }
    ways
}

fn flash_attention(plan: &Plan<'_>) -> Vec<Way> {
    const FLAG: &str = "--flash-attn";
    // Where it is a switch, it is off unless asked for.
    let is_choice = plan.server.flag(FLAG).is_some_and(|flag| flag.hint.is_some());
    match plan.model.flash_attention {
        Toggle::On => vec![value(FLAG, "on"), Way::Switch(FLAG)],
        Toggle::Off if is_choice => vec![value(FLAG, "off")],
        Toggle::Auto if is_choice => vec![value(FLAG, "auto")],
        Toggle::Off | Toggle::Auto => Vec::new(),
    }
}

fn lock_memory(plan: &Plan<'_>) -> Vec<Way> {
    if plan.model.lock_memory { vec![value("--load-mode", "mlock"), Way::Switch("--mlock")] } else { Vec::new() }
}

fn numa_name(numa: Numa) -> &'static str {
    match numa {
        Numa::Distribute => "distribute",
        Numa::Isolate => "isolate",
        Numa::Numactl => "numactl",
    }
}

fn embeddings(plan: &Plan<'_>) -> Vec<Way> {
    if plan.model.embeddings { vec![Way::Switch("--embeddings"), Way::Switch("--embedding")] } else { Vec::new() }
}

/// A model that does not say how to pool gets the mean: without pooling there is no vector for a whole text.
fn pooling(plan: &Plan<'_>) -> Vec<Way> {
    match plan.metadata.pooling {
        None | Some(Pooling::None) if plan.model.embeddings => vec![value("--pooling", Pooling::Mean.as_str())],
        _ => Vec::new(),
    }
}

/// The arguments for `server` that serve `model` as configured, without the program itself.
pub fn render(
    model: &Model,
    metadata: &Metadata,
    server: &Server,
    placement: &Placement<'_>,
) -> Result<Vec<OsString>, RenderError> {
    let plan = Plan { model, metadata, server, placement };
    let mut problems = impossible(&plan);
    let mut arguments = Vec::new();
    for intent in INTENTS {
        let ways = (intent.ways)(&plan);
        match ways.iter().find(|way| way.is_offered(server)) {
            Some(Way::Switch(name)) => arguments.push((*name).into()),
            Some(Way::Value(name, value)) => arguments.extend([(*name).into(), value.clone()]),
            Some(Way::Nothing) => {}
            None if ways.is_empty() => {}
            None => problems
                .push(Problem::Unsupported { key: intent.key, looked_for: ways.iter().map(Way::describe).collect() }),
        }
    }
    if problems.is_empty() {
        return Ok(arguments);
    }
    let server = format!("{} ({})", server.path.display(), server.version.text);
    Err(RenderError { model: placement.name.to_owned(), server, problems })
}

/// What no llama-server can do.
fn impossible(plan: &Plan<'_>) -> Vec<Problem> {
    let Plan { model, metadata, server, .. } = plan;
    let mut problems = Vec::new();
    let numbers = [
        ("context_size", model.context_size),
        ("slots", model.slots),
        ("batch_size", model.batch_size),
        ("micro_batch_size", model.micro_batch_size),
    ];
    problems.extend(numbers.into_iter().filter(|(_, n)| *n == 0).map(|(key, _)| Problem::Zero(key)));
    if model.context_size > metadata.context_length {
        problems.push(Problem::ContextTooLong { asked: model.context_size, trained: metadata.context_length });
    }
    let tokens = u64::from(model.context_size).next_multiple_of(CONTEXT_STEP) * u64::from(model.slots);
    if i32::try_from(tokens).is_err() {
        problems.push(Problem::TooManyTokens(tokens));
    }
    let block = ggml::by_name(kv_name(model.kv_type)).map_or(1, |kind| kind.block);
    if block > 1 {
        let auto = server.flag("--flash-attn").is_some_and(|flag| flag.accepts("auto"));
        let flash = match model.flash_attention {
            Toggle::On => true,
            Toggle::Off => false,
            Toggle::Auto => auto,
        };
        if !flash {
            problems.push(Problem::NeedsFlashAttention(model.kv_type));
        }
        let heads = [metadata.key_length, metadata.value_length];
        if let Some(head) = heads.into_iter().find(|head| !u64::from(*head).is_multiple_of(block)) {
            problems.push(Problem::HeadSize { kv_type: model.kv_type, block, head });
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::memory::tests::qwen;
    use crate::server::Version;
    use proptest::prelude::*;

    const COMMON: &str = "\
-m,    --model FNAME                    model path
-c,    --ctx-size N                     size
-np,   --parallel N                     slots
-t,    --threads N                      threads
-b,    --batch-size N                   logical
-ub,   --ubatch-size N                  physical
-ngl,  --gpu-layers, --n-gpu-layers N   layers
-ctk,  --cache-type-k TYPE              type
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1
-ctv,  --cache-type-v TYPE              type
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1
--numa TYPE                             attempt optimizations
                                        - distribute: spread
                                        - isolate: only
                                        - numactl: use
--host HOST                             address
--port PORT                             port
--jinja                                 template
--metrics                               metrics
--pooling {none,mean,cls,last,rank}     pooling
--api-key-file FNAME                    keys
";
    const CURRENT: &str = "\
-fa,   --flash-attn [on|off|auto]       set Flash Attention use
-lm,   --load-mode MODE                 loading
                                        - auto: mmap
                                        - mlock: force
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        unified
-a,    --alias STRING                   set model name aliases, comma-separated (to be used by API)
-cram, --cache-ram N                    most
--context-shift, --no-context-shift     shift
--ui,  --webui, --no-ui, --no-webui     pages
--offline                               offline
--cors-origins ORIGINS                  origins
--cors-credentials, --no-cors-credentials
                                        credentials
--embedding, --embeddings               embeddings
";
    const OLDER: &str = "\
-fa,   --flash-attn                     enable Flash Attention (default: disabled)
--mlock                                 force system to keep model in RAM
-a,    --alias STRING                   set alias for model name (to be used by REST API)
--no-webui                              no pages
--embedding, --embeddings               embeddings
";

    fn server(parts: &[&str]) -> Server {
        Server::from_help("/bin/llama-server".into(), Version::parse("version: 7 (abc)"), &parts.concat())
    }

    fn placement() -> Placement<'static> {
        Placement { name: "coder", file: Path::new("/m/a.gguf"), port: 8080, cores: 2, api_key_file: None }
    }

    fn text(arguments: Vec<OsString>) -> String {
        arguments.into_iter().map(|a| a.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn full() -> Model {
        Model {
            aliases: vec!["small".into()],
            slots: 4,
            kv_type: KvType::Q8_0,
            lock_memory: true,
            numa: Some(Numa::Isolate),
            gpu_layers: Some(3),
            ..Model::default()
        }
    }

    #[test]
    fn a_current_build_gets_its_own_flags() {
        let key = Placement { api_key_file: Some(Path::new("/k")), ..placement() };
        let arguments = render(&full(), &qwen(), &server(&[COMMON, CURRENT]), &key).unwrap();
        insta::assert_snapshot!(text(arguments), @"--model /m/a.gguf --host 127.0.0.1 --port 8080 --alias coder,small --api-key-file /k --ctx-size 32768 --parallel 4 --no-kv-unified --no-context-shift --cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on --load-mode mlock --numa isolate --threads 2 --batch-size 2048 --ubatch-size 128 --gpu-layers 3 --jinja --cache-ram 0 --metrics --no-ui --offline --cors-origins localhost --no-cors-credentials");
    }

    #[test]
    fn an_older_build_gets_its_own_flags() {
        let arguments = render(&full(), &qwen(), &server(&[COMMON, OLDER]), &placement()).unwrap();
        insta::assert_snapshot!(text(arguments), @"--model /m/a.gguf --host 127.0.0.1 --port 8080 --alias coder --ctx-size 32768 --parallel 4 --cache-type-k q8_0 --cache-type-v q8_0 --flash-attn --mlock --numa isolate --threads 2 --batch-size 2048 --ubatch-size 128 --gpu-layers 3 --jinja --metrics --no-webui");
    }

    #[test]
    fn an_embedding_model_computes_its_whole_context_at_once() {
        let model = Model { embeddings: true, context_size: 4096, ..Model::default() };
        let arguments = text(render(&model, &qwen(), &server(&[COMMON, CURRENT]), &placement()).unwrap());
        assert!(arguments.contains("--batch-size 4096 --ubatch-size 4096"), "{arguments}");
        assert!(arguments.contains("--embeddings --pooling mean"), "{arguments}");
        assert!(!arguments.contains("--jinja"), "{arguments}");
    }

    #[test]
    fn an_intent_the_binary_cannot_serve_is_named_with_the_flags_looked_for() {
        let error = render(&full(), &qwen(), &server(&[COMMON]), &placement()).unwrap_err().to_string();
        insta::assert_snapshot!(error, @r#"
        models.coder.flash_attention: /bin/llama-server (version: 7 (abc)) offers no way to do it (looked for --flash-attn on, --flash-attn); change the key or use another llama-server
        models.coder.lock_memory: /bin/llama-server (version: 7 (abc)) offers no way to do it (looked for --load-mode mlock, --mlock); change the key or use another llama-server
        "#);
    }

    #[test]
    fn what_no_server_can_do_is_refused_with_the_numbers() {
        let model = Model {
            context_size: 1 << 20,
            slots: 0,
            kv_type: KvType::Q4_0,
            flash_attention: Toggle::Off,
            ..Model::default()
        };
        let error = render(&model, &qwen(), &server(&[COMMON, CURRENT]), &placement()).unwrap_err().to_string();
        insta::assert_snapshot!(error, @r#"
        models.coder.slots is 0; set it to at least 1
        models.coder.context_size is 1048576, but the model was trained with 32768 tokens of context; set it to at most 32768
        models.coder.kv_type is q4_0, which needs flash attention: set models.coder.flash_attention to "on" or kv_type to "f16"
        "#);
    }

    fn any_model() -> impl Strategy<Value = Model> {
        let kv = prop::sample::select(vec![KvType::F16, KvType::Q8_0, KvType::Bf16, KvType::Q4_0]);
        let flash = prop::sample::select(vec![Toggle::On, Toggle::Off, Toggle::Auto]);
        let numa = prop::sample::select(vec![None, Some(Numa::Distribute), Some(Numa::Numactl)]);
        (kv, flash, numa, any::<[bool; 3]>(), 0u32..40_000, 0u32..9).prop_map(
            |(kv_type, flash_attention, numa, [lock_memory, embeddings, gpu], context_size, slots)| Model {
                kv_type,
                flash_attention,
                numa,
                lock_memory,
                embeddings,
                gpu_layers: gpu.then_some(7),
                context_size,
                slots,
                ..Model::default()
            },
        )
    }

    proptest! {
        #[test]
        fn no_flag_is_passed_that_the_help_does_not_list(model in any_model(), kept in prop::collection::vec(any::<bool>(), 64)) {
            let everything = [COMMON, CURRENT, OLDER].concat();
            let mut kept = kept.into_iter().cycle();
            let mut keeping = true;
            let help: String = everything
                .lines()
                .filter(|line| {
                    if line.starts_with('-') {
                        keeping = kept.next().unwrap_or(true);
                    }
                    keeping
                })
                .map(|line| format!("{line}\n"))
                .collect();
            let server = server(&[&help]);
            match render(&model, &qwen(), &server, &placement()) {
                Ok(arguments) => {
                    for argument in text(arguments).split(' ').filter(|a| a.starts_with("--")) {
                        prop_assert!(server.flag(argument).is_some(), "{argument} is not in\n{help}");
                    }
                }
                Err(error) => prop_assert!(!error.problems.is_empty()),
            }
        }
    }
}
