# The machine of a cluster that has what all share: PostgreSQL (tasks, keys, events), Qdrant and the repositories. It also
# takes tasks (`lares task submit` talks to its ralph) and works on one at a time.
#
# Secrets, made once on this machine and copied to the workers where they name them:
#   /etc/lares/wireguard.key       `wg genkey`
#   /etc/lares/database.password   `head -c 32 /dev/urandom | base64`
#   /etc/lares/qdrant.key          the same; and as QDRANT__SERVICE__API_KEY=… in /etc/lares/qdrant.env
#   /etc/lares/tracker.authorization   "Bearer …", from the issue tracker
{
  config,
  lib,
  pkgs,
  ...
}:
let
  network = import ../network.nix;
  harden = import ../../../nixos-modules/hardening.nix { inherit lib; };
in
{
  imports = [ ../../hardware-configuration.nix ];

  networking.hostName = "control";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";

  networking.wireguard.interfaces.${network.interface} = {
    ips = [ "${network.control.address}/24" ];
    listenPort = network.port;
    privateKeyFile = "/etc/lares/wireguard.key";
    peers = lib.mapAttrsToList (_: worker: {
      inherit (worker) publicKey;
      allowedIPs = [ "${worker.address}/32" ];
    }) network.workers;
  };
  networking.firewall = {
    allowedUDPPorts = [ network.port ];
    interfaces.${network.interface}.allowedTCPPorts = [
      2049 # NFS
      5432 # PostgreSQL
      6334 # Qdrant
    ];
  };
  # Servers bind to the private address before WireGuard has it.
  boot.kernel.sysctl."net.ipv4.ip_nonlocal_bind" = 1;

  services.postgresql = {
    settings.listen_addresses = lib.mkForce "localhost,${network.control.address}";
    settings.password_encryption = "scram-sha-256";
    authentication = ''
      host lares lares ${network.subnet} scram-sha-256
    '';
  };
  # Workers show a password; on this machine the socket knows the user.
  systemd.services.lares-database-password = {
    description = "Password of the database role lares";
    wantedBy = [ "multi-user.target" ];
    after = [
      "postgresql.service"
      "postgresql.target"
    ];
    requires = [ "postgresql.service" ];
    path = [ config.services.postgresql.package ];
    # Through psql's own variables, so that the password is on no command line.
    script = ''
      psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 <<'EOF'
      \set password `cat "$CREDENTIALS_DIRECTORY/password"`
      ALTER ROLE lares PASSWORD :'password';
      EOF
    '';
    serviceConfig = harden { user = "postgres"; } // {
      Type = "oneshot";
      RemainAfterExit = true;
      User = "postgres";
      # It talks to a socket and to nobody else.
      PrivateNetwork = true;
      RestrictAddressFamilies = "AF_UNIX";
      LoadCredential = "password:/etc/lares/database.password";
    };
  };

  services.qdrant = {
    enable = true;
    settings = {
      service = {
        host = network.control.address;
        http_port = 6333;
        grpc_port = 6334;
      };
      telemetry_disabled = true;
    };
  };
  systemd.services.qdrant.serviceConfig.EnvironmentFile = "/etc/lares/qdrant.env";

  services.nfs.server = {
    enable = true;
    hostName = network.control.address;
    exports = ''
      /srv/repositories ${network.subnet}(rw,no_subtree_check)
    '';
  };
  systemd.tmpfiles.settings."10-repositories"."/srv/repositories".d = {
    user = "lares";
    group = "lares";
    mode = "0755";
  };
  users.users.lares.uid = network.uid;
  users.groups.lares.gid = network.uid;

  services.lares = {
    enable = true;
    allowedAddresses = [ network.control.address ];

    models.coder.source = "qwen2.5-coder-1.5b-instruct";

    store.vectors = {
      backend = "qdrant";
      url = "http://${network.control.address}:6334";
      apiKeyFile = "/etc/lares/qdrant.key";
    };
    # The one above is the workers' as well.
    qdrant.createLocally = false;

    # A tool server elsewhere; its key is a file of this machine.
    tools.servers.tracker = {
      url = "https://tracker.example.org/mcp";
      headerFiles.Authorization = "/etc/lares/tracker.authorization";
      tags = [ "issues" ];
    };

    ralph = {
      repositories = [ "/srv/repositories" ];
      path = [
        pkgs.gnumake
        pkgs.python3
      ];
    };
  };
}
