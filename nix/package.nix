{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
  cmake,
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

  nativeBuildInputs = [
    cmake
    installShellFiles
    rustPlatform.bindgenHook
  ];
  # cmake is for llama.cpp, which its crate builds; the package itself is Cargo's.
  dontUseCmakeConfigure = true;

  # ggml leaves these out of builds that set SOURCE_DATE_EPOCH, as all of Nix's do, and embeds slowly then. Its
  # crate passes GGML_* on to CMake, and `lares` looks for the same features in the CPU before it embeds.
  env = lib.optionalAttrs stdenv.hostPlatform.isx86_64 {
    GGML_SSE42 = "ON";
    GGML_AVX = "ON";
    GGML_AVX2 = "ON";
    GGML_BMI2 = "ON";
    GGML_FMA = "ON";
    GGML_F16C = "ON";
  };

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
