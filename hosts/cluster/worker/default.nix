# A worker of a cluster: it has models of its own and takes tasks from the control machine's database. Another one is the
# same with another name; a task is leased by one worker at a time, and taken over when that one falls silent.
#
# Secrets:
#   /etc/lares/wireguard.key   `wg genkey`, this machine's own
#   /etc/lares/database.url    postgresql://lares:PASSWORD@10.77.0.1/lares with the control machine's password
#   /etc/lares/qdrant.key      the control machine's
{ config, pkgs, ... }:
let
  network = import ../network.nix;
  self = network.workers.${config.networking.hostName};
in
{
  imports = [ ../../hardware-configuration.nix ];

  networking.hostName = "worker1";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";

  networking.wireguard.interfaces.${network.interface} = {
    ips = [ "${self.address}/24" ];
    privateKeyFile = "/etc/lares/wireguard.key";
    peers = [
      {
        inherit (network.control) publicKey endpoint;
        allowedIPs = [ network.subnet ];
        # Keeps the way back open through a NAT, in seconds.
        persistentKeepalive = 25;
      }
    ];
  };

  # Tasks name a repository by its path, so it has the same one on every machine.
  fileSystems."/srv/repositories" = {
    device = "${network.control.address}:/srv/repositories";
    fsType = "nfs";
    options = [
      "_netdev"
      "nofail"
      "nfsvers=4.2"
    ];
  };
  users.users.lares.uid = network.uid;
  users.groups.lares.gid = network.uid;

  services.lares = {
    enable = true;
    allowedAddresses = [ network.control.address ];

    models.coder = {
      source = "qwen2.5-coder-1.5b-instruct";
      slots = 4;
    };

    database.createLocally = false;
    store = {
      urlFile = "/etc/lares/database.url";
      vectors = {
        backend = "qdrant";
        url = "http://${network.control.address}:6334";
        apiKeyFile = "/etc/lares/qdrant.key";
      };
    };
    qdrant.createLocally = false;

    ralph = {
      workers = 4;
      repositories = [ "/srv/repositories" ];
      path = [
        pkgs.gnumake
        pkgs.python3
      ];
    };
  };
  # A worktree belongs to a repository on the network: without that there is nothing to work on.
  systemd.services.lares-ralph.unitConfig.RequiresMountsFor = [ "/srv/repositories" ];
}
