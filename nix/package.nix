{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
  gitMinimal,
  postgresql,
  python3Minimal,
}:
let
  workspace = (lib.importTOML ../Cargo.toml).workspace.package;
in
rustPlatform.buildRustPackage {
  pname = "lares";
  inherit (workspace) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../crates
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;
  cargoBuildFlags = [
    "--package"
    "lares"
  ];

  nativeBuildInputs = [ installShellFiles ];

  # Tests that need what a build has not (a model, llama-server, namespaces) say SKIP. Those of the whole start several
  # servers each and are left to machines that have these.
  nativeCheckInputs = [
    gitMinimal
    postgresql
    python3Minimal
  ];
  cargoTestFlags = [
    "--workspace"
    "--lib"
    "--bins"
  ];

  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    installShellCompletion --cmd lares \
      --bash <($out/bin/lares completions bash) \
      --fish <($out/bin/lares completions fish) \
      --zsh <($out/bin/lares completions zsh)
    $out/bin/lares man man
    installManPage man/*
  '';

  meta = {
    description = "Self-healing home for local AI coding agents";
    longDescription = ''
      Tuned llama.cpp servers behind one OpenAI-compatible door, and a loop that runs an agent in a git worktree until
      the task's check exits 0.
    '';
    homepage = workspace.repository;
    license = [
      lib.licenses.asl20
      lib.licenses.mit
    ];
    mainProgram = "lares";
    maintainers = [ ];
    platforms = lib.platforms.linux;
  };
}
