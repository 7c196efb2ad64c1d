# What a person gets who sets nothing but a model.
{
  units = {
    "lares.target".has = [ "WantedBy=multi-user.target" ];
    "lares-setup.service".has = [
      "Type=oneshot"
      "RemainAfterExit=true"
      "postgresql.target"
      "User=lares"
    ];
    "lares-llama-coder.service" = {
      has = [
        ''"serve" "llama" "coder"''
        "Type=notify"
        "WatchdogSec="
        "DynamicUser=true"
        "Restart=on-failure"
        "RestartSec=100ms"
        "RestartSteps="
        "RestartMaxDelaySec="
        "OMP_WAIT_POLICY=passive"
        "IPAddressDeny=any"
        "MemoryDenyWriteExecute=true"
        "PrivateDevices=true"
        "CapabilityBoundingSet="
        "SystemCallFilter="
        "ProtectSystem=strict"
      ];
      lacks = [
        "LimitMEMLOCK"
        "MemoryMax="
        "User=root"
      ];
    };
    "lares-coordinator.service".has = [
      ''"serve" "coordinator"''
      "Type=notify"
      "WatchdogSec="
      "User=lares"
      "IPAddressDeny=any"
      "ProtectSystem=strict"
      "NoNewPrivileges=true"
    ];
    "lares-ralph.service" = {
      has = [
        ''"serve" "ralph"''
        "Type=notify"
        "User=lares"
        "IPAddressDeny=any"
        "ProtectSystem=strict"
      ];
      lacks = [ "BindPaths=" ];
    };
  };
  # A model that is a file already needs no unit that fetches it.
  absent = [ "lares-model-coder.service" ];
  settings = {
    state_dir = "/var/lib/lares";
    store.url = "postgresql:///lares?host=/run/postgresql";
    coordinator.listen = "127.0.0.1:8092";
    ralph.listen = "127.0.0.1:8098";
    models.coder.path = "/srv/models/coder.gguf";
    models.coder.port = 8080;
  };
  config = {
    services.postgresql.enable = true;
    services.postgresql.ensureDatabases = [ "lares" ];
    services.qdrant = { };
  };
}
