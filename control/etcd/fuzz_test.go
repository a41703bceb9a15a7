package etcd

import (
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"weft/control"
)

// FuzzDecode: whatever a key holds, it names garbage or describes a node that can be written again.
func FuzzDecode(f *testing.F) {
	for key, value := range map[string]string{
		"nodes/a":                                  `{"endpoints":["192.0.2.1"],"prefixes":["10.244.1.0/24"],"mac":"02:00:00:00:00:01","features":["rco"],"owner":{"id":"x","epoch":3}}`,
		"prefixes/10.244.1.0-24":                   `{"node":"a","owner":{"id":"x","epoch":3}}`,
		"prefixes/fd00:10:244:1::-64":              `{"node":"a"}`,
		"subnets/10.244.1.0-24":                    `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}`,
		"subnets/10.244.1.0-24&fd00:10:244:1::-64": `{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":""},"Weft":{"name":"a"}}`,
		"network": `{"pools":[{"prefix":"10.244.0.0/16","node_length":24}],"vni":1,"reservations":{"a":["10.244.1.0/24"]}}`,
		"config":  `{"Network":"10.244.0.0/16","SubnetMin":"10.244.9.0","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan","VNI":1}}`,
	} {
		f.Add(key, []byte(value))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		for _, s := range []schema{own{"/x"}, flannel{"/x", 1, FlannelPort}} {
			if n, err := s.decodeNetwork(value); err == nil {
				if n.Wrong() != "" {
					t.Errorf("accepted %+v: %s", n, n.Wrong())
				}
				for _, p := range n.Pools {
					if got, ok := allocate(p, newTaken()); !ok || !p.Has(got) {
						t.Errorf("%+v gives %v %v", p, got, ok)
					}
				}
			}
			v := newView(s)
			v.put(&mvccpb.KeyValue{Key: []byte("/x/" + key), Value: value, CreateRevision: 1, ModRevision: 1})
			nodes, problems, _ := v.cluster()
			for _, n := range nodes {
				if control.WrongName(n.Name) != "" {
					t.Errorf("a node %q", n.Name)
				}
			}
			for _, p := range problems {
				if p.Text == "" || p.Node != "" && control.WrongName(p.Node) != "" {
					t.Errorf("problem %+v", p)
				}
			}
			v.remove("/x/" + key)
			if nodes, problems, _ := v.cluster(); len(nodes)+len(problems) > 0 {
				t.Errorf("what was removed is still there: %v %v", nodes, problems)
			}
		}
	})
}
