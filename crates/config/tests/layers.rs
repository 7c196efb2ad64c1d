//! The layers of the configuration, and what a person reads when one of them is wrong.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write;

use lares_config::{ByteSize, Config, Sources};
use proptest::prelude::*;

fn sources(file: &str) -> (Sources, tempfile::NamedTempFile) {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(file.as_bytes()).unwrap();
    (Sources { file: Some(on_disk.path().to_owned()), ..Sources::default() }, on_disk)
}

fn message(file: &str) -> String {
    let (sources, on_disk) = sources(file);
    sources.load().unwrap_err().to_string().replace(&on_disk.path().display().to_string(), "lares.toml")
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let (mut sources, _file) = sources("[ralph]\nmax_iterations = 2\nworkers = 2\nlease = \"10s\"\n");
    sources.environment = vec![
        ("LARES_RALPH__MAX_ITERATIONS".into(), "3".into()),
        ("LARES_RALPH__WORKERS".into(), "3".into()),
        ("LARES_TEST_MODEL".into(), "/some/where".into()),
    ];
    sources.flags = vec![("ralph.max_iterations".into(), "4".into())];
    let loaded = sources.load().unwrap();
    assert_eq!(loaded.config.ralph.max_iterations, 4);
    assert_eq!(loaded.config.ralph.workers, 3);
    assert_eq!(loaded.config.ralph.lease.as_secs(), 10);
    assert_eq!(loaded.config.ralph.check_timeout.as_secs(), 300);
    let origin = |key: &str| loaded.entries().into_iter().find(|entry| entry.key == key).unwrap().origin;
    assert_eq!(origin("ralph.max_iterations"), "--set ralph.max_iterations");
    assert_eq!(origin("ralph.workers"), "environment variable LARES_RALPH__WORKERS");
    assert!(origin("ralph.lease").starts_with('/'));
    assert_eq!(origin("ralph.check_timeout"), "default");
}

#[test]
fn text_layers_are_read_as_what_the_key_takes() {
    let sources = Sources {
        flags: vec![
            ("state_dir".into(), "/123".into()),
            ("llama.memory_budget".into(), "6 GiB".into()),
            ("agents.sandbox.read".into(), "/opt/a, /opt/b".into()),
            ("models.coder".into(), "{ path = \"/m.gguf\", slots = 2 }".into()),
            ("models.coder.embeddings".into(), "true".into()),
        ],
        ..Sources::default()
    };
    let config = sources.load().unwrap().config;
    assert_eq!(config.state_dir.to_str(), Some("/123"));
    assert_eq!(config.llama.memory_budget, Some(ByteSize::gib(6)));
    assert_eq!(config.agents.sandbox.read.len(), 2);
    assert_eq!(config.models["coder"].slots, 2);
    assert!(config.models["coder"].embeddings);
}

#[test]
fn wrong_configurations_say_where_and_what_to_do() {
    let wrong = [
        "[ralph\nworkers = 1",
        "[ralph]\nmax_iteration = 3\n[coordnator]\n",
        "[ralph]\nworkers = \"many\"\n",
        "[ralph]\nlease = 30\n",
        "ralph = 3\n",
        "[tools.servers.notes]\ncommand = \"npx notes\"\n",
        "[tools.servers.notes]\nenv = \"A=1\"\n",
        "[models.a]\nsource = \"x\"\nkv_type = \"q3\"\n",
        "[models.a]\nslots = 0\n[models.b]\npath = \"b.gguf\"\nkv_type = \"q4_0\"\nflash_attention = \"off\"\n",
        "[ralph]\nlisten = \"0.0.0.0:8092\"\n",
    ];
    let told = wrong.map(|file| format!("{file}\n→ {}\n", message(file))).join("\n");
    insta::assert_snapshot!(told);
}

#[test]
fn unknown_variables_are_named_with_the_nearest_section() {
    let sources = Sources { environment: vec![("LARES_RALHP__WORKERS".into(), "1".into())], ..Sources::default() };
    insta::assert_snapshot!(sources.load().unwrap_err().to_string());
}

#[test]
fn what_is_written_for_the_daemons_reads_back_the_same() {
    let mut config = Config::default();
    config.models.insert("coder".into(), lares_config::Model { source: Some("x".into()), ..Default::default() });
    let (sources, _file) = sources(&config.to_toml().unwrap());
    assert_eq!(sources.load().unwrap().config, config);
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_an_error(text in "[a-z_=\\[\\]\".0-9 \n]{0,200}") {
        let (sources, _file) = sources(&text);
        let _ = sources.load();
    }

    #[test]
    fn any_variable_is_a_configuration_or_an_error(name in "LARES_[A-Z_]{0,30}", value in ".{0,30}") {
        let sources = Sources { environment: vec![(name, value)], ..Sources::default() };
        let _ = sources.load();
    }
}

#[test]
fn the_healer_touches_named_services_only_and_says_all_that_is_wrong() {
    let good = "[healer.units.\"app@1.service\"]\nkeep_running = true\nports = [8090]\nport_variable = \"PORT\"\n\
                probe = { http = \"http://127.0.0.1:8080/health\", interval = \"1s\" }\nmemory_max = \"2GiB\"\n";
    let (given, _file) = sources(good);
    let config = given.load().unwrap().config;
    let unit = &config.healer.units["app@1.service"];
    assert_eq!((unit.keep_running, unit.probe.threshold, unit.ports.as_slice()), (true, 3, &[8090][..]));
    assert_eq!(unit.memory_max, Some(ByteSize::gib(2)));

    let wrong = "[healer]\nmax_per_hour = 0\nlisten = \"127.0.0.1:8098\"\nbackoff_max = \"1s\"\n\
                 [healer.units.\"a b.service\"]\n[healer.units.\"-.mount\"]\n[healer.units.\".service\"]\n\
                 [healer.units.\"x.service\"]\nports = [1]\ndependencies = [\"x.service\"]\n\
                 probe = { tcp = \"127.0.0.1:1\", command = [\"true\"], threshold = 0 }\n";
    let told = message(wrong);
    for part in [
        "healer.max_per_hour: must be at least 1",
        "healer.listen: port 8098 is used by ralph.listen already",
        "healer.backoff_max: must be at least 1m",
        "`a b.service` is not the full name of a service",
        "`-.mount` is not the full name of a service",
        "`.service` is not the full name of a service",
        "x.service.ports: needs `port_variable`",
        "a unit cannot need itself",
        "set only one of `http`, `tcp` and `command`",
        "`true` must be an absolute path",
        "x.service.probe.threshold: must be at least 1",
    ] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
}
