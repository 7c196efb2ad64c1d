# Mistakes that types cannot see, each with its remedy. They look at the settings as rendered, so it does not matter
# whether a value came from a typed option or from `settings`.
{ config, lib, ... }:
let
  cfg = config.services.lares;
  types = import ./types.nix { inherit lib; };
  wiring = import ./wiring.nix { inherit lib cfg; };

  settings = cfg.renderedSettings;
  # Every key of these is there: a model that only `settings` has is a mistake of its own.
  models = builtins.intersectAttrs cfg.models settings.models;
  upstreams = settings.coordinator.upstreams or { };
  healed = settings.healer.units or { };
  option = "services.lares";

  goodName = name: builtins.match "[A-Za-z0-9][A-Za-z0-9_.-]*" name != null;
  quantised = kind: lib.hasPrefix "q" kind;
  has64Hex = text: builtins.match "[0-9a-fA-F]{64}" text != null;
  isHttp = url: builtins.match "https?://.+" url != null;

  # "127.0.0.1:8092" -> { address = "127.0.0.1"; port = 8092; }
  socket =
    text:
    let
      parts = builtins.match "(.*):([0-9]+)" text;
    in
    {
      address = if parts == null then text else builtins.elemAt parts 0;
      port = if parts == null then 0 else lib.toIntBase10 (builtins.elemAt parts 1);
    };
  isLoopback =
    address: builtins.match "127\\.[0-9]+\\.[0-9]+\\.[0-9]+" address != null || address == "[::1]";

  listeners = {
    "${option}.coordinator.listen" = settings.coordinator.listen;
    "${option}.ralph.listen" = settings.ralph.listen;
    "${option}.healer.listen" = settings.healer.listen;
    "${option}.tools.listen" = settings.tools.listen;
  };

  # Everything that takes a TCP port; of two on one port the later is asked to take another.
  claims =
    lib.mapAttrsToList (name: listen: {
      inherit name;
      inherit (socket listen) port;
    }) listeners
    ++ lib.optionals cfg.qdrant.createLocally [
      {
        name = "services.qdrant.settings.service.http_port";
        port = 6333;
      }
      {
        name = "services.qdrant.settings.service.grpc_port";
        port = 6334;
      }
    ]
    ++ lib.mapAttrsToList (name: model: {
      name = "${option}.models.${name}.port";
      inherit (model) port;
    }) models
    ++ lib.concatLists (
      lib.mapAttrsToList (
        name: unit:
        map (port: {
          name = "${healedOption name}.ports";
          inherit port;
        }) (lib.unique (unit.ports or [ ]))
      ) healed
    );
  claimants = lib.groupBy (claim: toString claim.port) claims;

  # Who answers to a name: the model itself, and those that have it as an alias.
  owners = lib.zipAttrs (
    lib.mapAttrsToList (name: _: { ${name} = name; }) models
    ++ lib.concatLists (
      lib.mapAttrsToList (name: model: map (alias: { ${alias} = name; }) (model.aliases or [ ])) models
    )
  );
  servedNames =
    lib.attrNames owners
    ++ lib.concatMap (upstream: lib.attrNames (upstream.models or { })) (lib.attrValues upstreams);

  bounded = lib.filterAttrs (_: model: model.memoryMax != null) cfg.models;
  boundedBytes = lib.foldl' (sum: model: sum + types.bytes model.memoryMax) 0 (
    lib.attrValues bounded
  );
  mib = bytes: "${toString (bytes / 1048576)} MiB";

  url = settings.store.url or "";

  ofModel =
    name: model:
    let
      here = "${option}.models.${name}";
      inherit (cfg.models.${name}) accelerator;
      places = lib.filter (place: model ? ${place}) [
        "source"
        "path"
        "url"
      ];
      tokens = model.context_size * model.slots;
    in
    [
      {
        assertion = goodName name;
        message = ''${here}: the name of a model has letters, digits, "-", "_" and "." only and starts with a letter or digit.'';
      }
      {
        assertion = places != [ ];
        message = ''
          ${here} says nowhere where the model is. Set one of
            ${here}.source = "qwen2.5-coder-1.5b-instruct";   # a name that `lares model list` prints
            ${here}.path = "/data/models/coder.gguf";         # a file that is there
            ${here}.url = "https://…";                        # with ${here}.sha256'';
      }
      {
        assertion = lib.length places < 2;
        message = "${here} sets ${lib.concatStringsSep " and " places}; keep one of them.";
      }
      {
        assertion = model ? url -> model ? sha256;
        message = "${here}.url needs ${here}.sha256: a file from the network is used only when its hash is known (`sha256sum FILE` prints it).";
      }
      {
        assertion = model ? sha256 -> has64Hex model.sha256;
        message = ''${here}.sha256 = "${model.sha256 or ""}" is not 64 hexadecimal digits; `nix-hash --to-base16 --type sha256` turns other forms into them.'';
      }
      {
        assertion = model ? url -> isHttp model.url;
        message = ''${here}.url = "${model.url or ""}" is not an http:// or https:// URL; a file of this machine goes into ${here}.path.'';
      }
      {
        assertion = quantised model.kv_type -> model.flash_attention != "off";
        message = ''${here}: kvType = "${model.kv_type}" needs flash attention. Set flashAttention = "on", or kvType = "f16".'';
      }
      {
        assertion = model.micro_batch_size <= model.batch_size;
        message = "${here}: microBatchSize (${toString model.micro_batch_size}) must not be larger than batchSize (${toString model.batch_size}).";
      }
      {
        assertion = tokens <= 1048576;
        message = "${here}: contextSize × slots is ${toString model.context_size} × ${toString model.slots} = ${toString tokens} tokens, all kept in memory from the start; more than 1048576 is refused. contextSize is per request already.";
      }
      {
        assertion = (model.gpu_layers or 0) > 0 -> accelerator != null;
        message = ''${here}: gpuLayers = ${
          toString (model.gpu_layers or 0)
        }, but its unit sees no GPU. Set ${here}.accelerator = "cuda", "rocm" or "vulkan".'';
      }
      {
        assertion =
          lib.elem accelerator [
            "cuda"
            "vulkan"
          ]
          -> config.hardware.graphics.enable;
        message = ''${here}.accelerator = "${toString accelerator}" needs the driver's libraries. Set hardware.graphics.enable = true.'';
      }
    ]
    ++ map (alias: {
      assertion = owners.${alias} == [ name ];
      message = ''${here}.aliases: "${alias}" is a name of ${
        lib.concatMapStringsSep " and " (owner: "${option}.models.${owner}") (lib.unique owners.${alias})
      }${lib.optionalString (lib.unique owners.${alias} == [ name ]) " already"}; keep it at one.'';
    }) (lib.unique (model.aliases or [ ]));

  ofUpstream =
    name: upstream:
    let
      here = "${option}.coordinator.upstreams.${name}";
    in
    [
      {
        assertion = goodName name;
        message = ''${here}: the name of an upstream has letters, digits, "-", "_" and "." only and starts with a letter or digit.'';
      }
      {
        assertion = isHttp (upstream.url or "");
        message = ''${here}.url = "${upstream.url or ""}" is not an http:// or https:// URL; write for example "https://api.example.org/v1".'';
      }
      {
        assertion = (upstream.models or { }) != { };
        message = ''${here} names no model, so no request would reach it. Set for example ${here}.models.large = "name-at-the-provider".'';
      }
    ];

  healedOption = name: ''${option}.healer.units."${name}"'';
  # A service of this system; one of many that are made from a template has the template's unit.
  isService =
    name:
    let
      instance = builtins.match "(.*@).+(\\.service)" name;
    in
    lib.hasSuffix ".service" name
    && (
      config.systemd.units ? ${name}
      || (instance != null && config.systemd.units ? ${lib.concatStrings instance})
    );
  noService =
    name:
    let
      service = ''systemd.services."${lib.removeSuffix ".service" name}"'';
    in
    "there is no ${service} on this system. Correct the name; if a package of systemd.packages brings the unit, write ${service} = { };";

  ofHealed =
    name: unit:
    let
      here = healedOption name;
      probes = lib.filter (kind: (unit.probe.${kind} or [ ]) != [ ]) [
        "http"
        "tcp"
        "command"
      ];
      others = lib.unique (
        (unit.dependencies or [ ])
        ++ lib.optional (unit ? database) unit.database
        ++ lib.attrNames (unit.port_variables or { })
      );
    in
    [
      {
        assertion = isService name;
        message =
          if isService "${name}.service" then
            "${here} is not the full name of a service. Write ${healedOption "${name}.service"}."
          else
            "${here}: ${noService name}";
      }
      {
        assertion =
          !lib.elem name [
            "lares-healer.service"
            "lares-healer-helper.service"
          ];
        message = "${here}: the healer cannot heal itself; systemd brings it back. Take it out.";
      }
      {
        assertion = (unit.ports or [ ]) != [ ] -> unit ? port_variable;
        message = ''${here}.ports needs ${here}.portVariable: the environment variable that tells the unit its port, such as "PORT".'';
      }
      {
        assertion = lib.length probes < 2;
        message = "${here}.probe sets ${lib.concatStringsSep " and " probes}; keep one of them.";
      }
    ]
    ++ map (other: {
      assertion = isService other && other != name;
      message =
        if other == name then
          "${here} names itself among what it needs; take that out."
        else
          "${here} names ${other}, but ${noService other}";
    }) others;

  # A model that the healer asks.
  ofAsked = key: {
    assertion =
      settings.healer ? ${key}
      -> (settings.ralph.coordinator_url or "") != "" || lib.elem settings.healer.${key} servedNames;
    message = ''${option}.healer: ${key} = "${settings.healer.${key} or ""}" is no model here. There is ${
      if servedNames == [ ] then "none" else lib.concatStringsSep ", " servedNames
    }.'';
  };

  # Where the name of a secret ends, and how secrets of some well-known services begin.
  namesSecret =
    name:
    builtins.match "(.*[_-])?(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)" (
      lib.toUpper name
    ) != null;
  isSecret =
    text:
    builtins.match "(Bearer )?(sk-|sk_live_|gh[opsu]_|github_pat_|glpat-|xox[abpr]-|hf_|AKIA|lares_)[A-Za-z0-9_.-]{20,}" text
    != null;
  # `--api-key=…`, `https://host/mcp?token=…`, `https://user:password@host/`
  carriesSecret =
    text:
    let
      # A parameter of a URL, or an option of a program; a path is where a secret is.
      named =
        part:
        let
          found = builtins.match "(--)?([A-Za-z_-]+)=[^/].*" part;
        in
        found != null && namesSecret (lib.replaceStrings [ "-" ] [ "_" ] (lib.last found));
    in
    isSecret text
    || lib.any (part: lib.isString part && named part) (builtins.split "[?&]" text)
    || builtins.match "[a-z]+://[^/@]*:[^/@]+@.*" text != null;

  ofToolServer =
    name: server:
    let
      here = "${option}.tools.servers.${
        if builtins.match "[a-zA-Z_][a-zA-Z0-9_-]*" name != null then name else ''"${name}"''
      }";
      isProgram = (server.command or [ ]) != [ ];
      plain = lib.attrNames (
        lib.filterAttrs (
          name: value: isSecret value || (namesSecret name && value != "" && !lib.hasPrefix "/" value)
        ) (server.env or { })
      );
    in
    [
      {
        assertion =
          builtins.match "[a-z0-9][a-z0-9_.-]{0,31}" name != null
          && !lib.hasInfix "__" name
          && !lib.hasSuffix "_" name;
        message = ''${here}: the name of a tool server has up to 32 of a-z, 0-9, "-", "_" and ".", starts with a letter or digit, and has no "__" in it and no "_" at its end: its tools are called NAME__TOOL.'';
      }
      {
        assertion = isProgram || server ? url;
        message = ''
          ${here} says nowhere where the server is. Set one of
            ${here}.command = [ (lib.getExe pkgs.mcp-server-git) ];   # a program that speaks MCP on stdio
            ${here}.url = "http://127.0.0.1:9400/mcp";                # one that is running'';
      }
      {
        assertion = !(isProgram && server ? url);
        message = "${here} sets command and url; keep one of them.";
      }
      {
        assertion = isProgram || (server.env_files or { }) == { };
        message = "${here}.envFiles is for programs, and this server has a url. Set ${here}.headerFiles.Authorization = \"/run/secrets/…\".";
      }
      {
        assertion = !isProgram || (server.header_files or { }) == { };
        message = "${here}.headerFiles is for servers with a url, and this one is a program. Set ${here}.envFiles.";
      }
      {
        assertion =
          !lib.any carriesSecret ((server.command or [ ]) ++ lib.optional (server ? url) server.url);
        message = "${here}: ${
          if isProgram then "an argument of its command" else "its url"
        } has a secret in it, and everybody can read it in the Nix store. Put it into a file and name that: ${here}.${
          if isProgram then "envFiles.NAME" else "headerFiles.Authorization"
        }.";
      }
    ]
    ++ map (variable: {
      assertion = false;
      message = ''${here}.env.${variable} looks like a secret, and everybody can read it in the Nix store. Put it into a file and name that: ${here}.envFiles.${variable} = "/run/secrets/…".'';
    }) plain
    ++ map (secret: {
      assertion = builtins.match "[A-Za-z0-9_.-]+" secret != null;
      message = ''${here}: "${secret}" is no name of a variable or a header. It has letters, digits, "-", "_" and "." only.'';
    }) (lib.attrNames (server.env_files or { }) ++ lib.attrNames (server.header_files or { }));

  toolsets = settings.tools.toolsets or { };
  # Which toolsets a key is in.
  toolsetsOf = lib.zipAttrs (
    lib.concatLists (
      lib.mapAttrsToList (
        name: toolset: map (key: { ${key} = name; }) (lib.unique (toolset.keys or [ ]))
      ) toolsets
    )
  );

  ofToolset = name: _: {
    assertion = builtins.match "[A-Za-z0-9_.-]+" name != null;
    message = ''${option}.tools.toolsets."${name}": the name is part of a URL (/mcp/NAME); it has letters, digits, "-", "_" and "." only.'';
  };
  ofToolsetKey = key: names: {
    assertion = lib.length names < 2;
    message = ''The key "${key}" is in ${
      lib.concatMapStringsSep " and " (name: "${option}.tools.toolsets.${name}.keys") names
    }, and a key sees one toolset. Keep it at one; every key may use the URL of a toolset without keys.'';
  };

  embeds = settings.tools.search;
  inherit (wiring) embeddingModel;

  ofPort =
    port: takers:
    let
      takerNames = map (taker: taker.name) takers;
    in
    {
      assertion = port == "0" || lib.length takers < 2;
      message = "TCP port ${port} is taken by ${lib.concatStringsSep " and " takerNames}. Set ${lib.last takerNames} to another one.";
    };

  ofListener = name: listen: {
    assertion = isLoopback (socket listen).address;
    message = ''
      ${name} = "${listen}" is not on loopback. Keys travel in clear text, so only this machine is served:
      listen on 127.0.0.1 and put a proxy with TLS in front, for example services.nginx.virtualHosts.<name>.locations."/".proxyPass.'';
  };
in
{
  config = lib.mkIf cfg.enable {
    assertions =
      lib.concatLists (lib.mapAttrsToList ofModel models)
      ++ lib.concatLists (lib.mapAttrsToList ofUpstream upstreams)
      ++ lib.optionals cfg.healer.enable (
        lib.concatLists (lib.mapAttrsToList ofHealed healed)
        ++ map ofAsked [
          "embedding_model"
          "diagnosis_model"
        ]
      )
      ++ lib.optionals cfg.tools.enable (
        lib.concatLists (lib.mapAttrsToList ofToolServer (settings.tools.servers or { }))
        ++ lib.mapAttrsToList ofToolset toolsets
        ++ lib.mapAttrsToList ofToolsetKey toolsetsOf
        ++ [
          {
            assertion = embeddingModel == null || goodName embeddingModel;
            message = ''${option}.tools.search.model = "${embeds.model}" is no model of the catalog, which `lares model list` prints, and no path of a GGUF file, which begins with "/".'';
          }
          {
            assertion =
              embeds.embedding != "endpoint"
              || embeds ? url
              || (settings.ralph.coordinator_url or "") != ""
              || lib.elem embeds.model servedNames;
            message = ''${option}.tools.search.model = "${embeds.model}" is no model here. There is ${
              if servedNames == [ ] then "none" else lib.concatStringsSep ", " servedNames
            }. Name one of them that makes embeddings, or set ${option}.tools.search.url.'';
          }
          {
            assertion = embeddingModel == "all-minilm-l6-v2" -> settings.store.vectors.dimensions == 384;
            message = ''${option}.tools.search.model = "all-minilm-l6-v2" makes vectors of 384 numbers; ${option}.store.vectors.dimensions is ${toString settings.store.vectors.dimensions}. Set it to 384, or name another model.'';
          }
        ]
      )
      ++ lib.mapAttrsToList ofPort claimants
      ++ lib.mapAttrsToList ofListener listeners
      ++ [
        {
          assertion = lib.attrNames models == lib.attrNames settings.models;
          message = "${option}.settings.models has ${lib.concatStringsSep ", " (lib.subtractLists (lib.attrNames models) (lib.attrNames settings.models))}, for which there would be no unit. Models are made in ${option}.models; settings changes what they have.";
        }
        {
          assertion = settings.state_dir == cfg.stateDir;
          message = "${option}.settings.state_dir differs from ${option}.stateDir, which the units know. Set ${option}.stateDir.";
        }
        {
          assertion = cfg.database.createLocally || url != "" || settings.store ? url_file;
          message = ''
            ${option}.database.createLocally is false and no other database is named. Set
              ${option}.store.urlFile = "/run/secrets/…";   # a file with postgresql://user:password@host/database
            or, without a password, ${option}.store.url.'';
        }
        {
          assertion = cfg.database.createLocally -> !(settings.store ? url_file);
          message = "${option}.store.urlFile names a database, but ${option}.database.createLocally makes one here. Set ${option}.database.createLocally = false.";
        }
        {
          assertion = cfg.database.createLocally -> lib.hasInfix "host=/" url || settings.store ? url_file;
          message = ''${option}.store.url = "${url}" is not the database that ${option}.database.createLocally makes. Set ${option}.database.createLocally = false.'';
        }
        {
          assertion = builtins.match ".*(://[^/@]*:[^/@]+@|password *=).*" url == null;
          message = "${option}.store.url has a password in it, and everybody can read it in the Nix store. Put the URL into a file and name that: ${option}.store.urlFile.";
        }
        {
          assertion =
            cfg.qdrant.createLocally
            -> settings.store.vectors.backend == "qdrant" && wiring.onLoopback settings.store.vectors.url;
          message = ''${option}.qdrant.createLocally runs a Qdrant that nobody uses: store.vectors has backend = "${settings.store.vectors.backend}" and url = "${settings.store.vectors.url}". Set ${option}.qdrant.createLocally = false, or backend = "qdrant" and a URL on loopback.'';
        }
        {
          assertion = cfg.valkey.createLocally -> settings.store.cache.backend == "redis";
          message = ''${option}.valkey.createLocally runs a Valkey that nobody uses. Set ${option}.store.cache.backend = "redis", or ${option}.valkey.createLocally = false.'';
        }
        {
          assertion = config.users.users ? ${cfg.user};
          message = ''${option}.user = "${cfg.user}", but there is no users.users.${cfg.user}. Only the user "lares" is made.'';
        }
        {
          assertion = config.users.groups ? ${cfg.group};
          message = ''${option}.group = "${cfg.group}", but there is no users.groups.${cfg.group}. Only the group "lares" is made.'';
        }
        {
          assertion =
            cfg.ralph.enable -> cfg.coordinator.enable || (settings.ralph.coordinator_url or "") != "";
          message = "${option}.ralph needs a coordinator. Set ${option}.coordinator.enable = true, or ${option}.ralph.coordinatorUrl and coordinatorKeyFile.";
        }
        {
          assertion =
            settings.agents.builtin.model != ""
            ->
              (settings.ralph.coordinator_url or "") != "" || lib.elem settings.agents.builtin.model servedNames;
          message = ''${option}.agents.builtin.model = "${settings.agents.builtin.model}" is no model here. There is ${
            if servedNames == [ ] then "none" else lib.concatStringsSep ", " servedNames
          }.'';
        }
        {
          assertion =
            cfg.healer.enable && cfg.database.createLocally
            -> lib.hasInfix "map=lares" config.services.postgresql.authentication;
          message = ''
            services.postgresql.authentication lacks the line that lets the healer in: lib.mkForce replaces all of it. Add
              local ${cfg.user} ${cfg.user} peer map=lares
            before the others, or set ${option}.healer.enable = false.'';
        }
        {
          assertion = cfg.llama.memoryBudget != null -> boundedBytes <= types.bytes cfg.llama.memoryBudget;
          message = "The memoryMax of ${lib.concatStringsSep ", " (lib.attrNames bounded)} are ${mib boundedBytes} together, more than ${option}.llama.memoryBudget (${toString cfg.llama.memoryBudget}). Lower them, or raise the budget.";
        }
      ];

    warnings =
      lib.optional (cfg.coordinator.enable && models == { } && upstreams == { })
        "${option} is enabled without a model, so there is nobody to answer. Set for example ${option}.models.coder.source = \"qwen2.5-coder-1.5b-instruct\".";
  };
}
