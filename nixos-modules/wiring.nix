# What units need of the rest, worked out from the settings as they are rendered: whoever set them, and how.
{ lib, cfg }:
let
  settings = cfg.renderedSettings;

  # Host of a URL; null when there is none in it.
  host =
    url:
    let
      parts = builtins.match "[a-zA-Z+]+://([^/@]*@)?(\\[[^]]*]|[^/:?]*).*" url;
    in
    if parts == null then null else builtins.elemAt parts 1;

  onLoopback =
    url:
    let
      name = host url;
    in
    name == "localhost"
    || name == "[::1]"
    || (name != null && builtins.match "127\\.[0-9.]+" name != null);

  # Secrets that several units read. The file names them where they are, so that root's `lares` finds them too; a unit
  # gets its own copy, and a variable, which wins over the file, that says where.
  shared = [
    {
      name = "store-url";
      file = settings.store.url_file or null;
      variable = "LARES_STORE__URL_FILE";
      units = [
        "lares-setup"
        "lares-coordinator"
        "lares-ralph"
        "lares-tools"
        "lares-healer"
      ];
    }
    {
      name = "vectors-api-key";
      file = settings.store.vectors.api_key_file or null;
      variable = "LARES_STORE__VECTORS__API_KEY_FILE";
      units = [
        "lares-setup"
        "lares-coordinator"
        "lares-ralph"
        "lares-tools"
        "lares-healer"
      ];
    }
    {
      name = "coordinator-key";
      file = settings.ralph.coordinator_key_file or null;
      variable = "LARES_RALPH__COORDINATOR_KEY_FILE";
      units = [
        "lares-ralph"
        "lares-tools"
      ];
    }
  ];
in
{
  inherit host onLoopback;

  # Names of upstreams that are on another machine.
  remoteUpstreams = lib.attrNames (
    lib.filterAttrs (_: upstream: !onLoopback (upstream.url or "")) (
      settings.coordinator.upstreams or { }
    )
  );

  # The tool servers that are used.
  toolServers = lib.filterAttrs (_: server: server.enabled or true) (settings.tools.servers or { });

  # Model of the catalog that the tools daemon computes with itself; null for a file, or when it has none.
  embeddingModel =
    let
      inherit (settings.tools) search;
    in
    if cfg.tools.enable && search.embedding == "in-process" && !(lib.hasPrefix "/" search.model) then
      search.model
    else
      null;

  # Units that have to be up before one that uses the store.
  storeUnits =
    # The target comes after the databases and roles are made; the service alone does not say that.
    lib.optionals cfg.database.createLocally [
      "postgresql.service"
      "postgresql.target"
    ]
    ++ lib.optional cfg.qdrant.createLocally "qdrant.service"
    ++ lib.optional cfg.valkey.createLocally "redis-lares.service";

  # Groups whose sockets it opens.
  storeGroups = lib.optional cfg.valkey.createLocally "redis-lares";

  # `LoadCredential=` of a unit, and the variables that lead to the copies.
  credentials =
    unit:
    let
      used = lib.filter (secret: secret.file != null && lib.elem unit secret.units) shared;
      # Variables cannot carry every name that these have, and only one unit reads them: the file leads there.
      own =
        {
          lares-coordinator = lib.mapAttrs' (name: lib.nameValuePair "upstream-${name}") cfg.upstreamKeys;
          lares-tools = cfg.toolSecrets;
        }
        .${unit} or { };
    in
    {
      load =
        map (secret: "${secret.name}:${secret.file}") used
        ++ lib.mapAttrsToList (name: file: "${name}:${file}") own;
      environment = lib.listToAttrs (
        map (secret: lib.nameValuePair secret.variable "%d/${secret.name}") used
      );
    };
}
