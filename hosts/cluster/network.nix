# The private network of the cluster, over WireGuard: PostgreSQL, Qdrant and NFS send in clear text, so between machines
# they go through it and nowhere else.
#
# The keys are examples. Make yours with `wg genkey`, keep the private one in /etc/lares/wireguard.key (mode 0600), and put
# what `wg pubkey` makes of it here.
rec {
  interface = "wg-lares";
  subnet = "10.77.0.0/24";
  port = 51820;

  control = {
    address = "10.77.0.1";
    endpoint = "control.example.org:${toString port}";
    publicKey = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
  };

  # One line a worker; each has the configuration in ./worker with its own name and address.
  workers = {
    worker1 = {
      address = "10.77.0.2";
      publicKey = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    };
    worker2 = {
      address = "10.77.0.3";
      publicKey = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
    };
  };

  # Files of repositories belong to this user and group on every machine.
  uid = 980;
}
