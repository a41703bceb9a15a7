package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// ErrNoNetwork says that the API server answered and that the cluster's prefixes are written down nowhere.
var ErrNoNetwork = errors.New("the cluster's prefixes are not known")

// Where kubeadm has what it was told about the cluster.
const (
	kubeadmNamespace = "kube-system"
	kubeadmConfig    = "kubeadm-config"
	kubeadmKey       = "ClusterConfiguration"
)

// FindNetwork asks the API server which prefixes the cluster's pods have: kubeadm's podSubnet, which it gives the
// kube-controller-manager as --cluster-cidr. why says where they stand.
func FindNetwork(ctx context.Context, s Settings) (network []netip.Prefix, why string, err error) {
	quiet()
	c, err := dial(s)
	if err != nil {
		return nil, "", err
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var config corev1.ConfigMap
	err = c.rest.Get().Namespace(kubeadmNamespace).Resource("configmaps").Name(kubeadmConfig).Do(ctx).Into(&config)
	where := fmt.Sprintf("ConfigMap %s/%s", kubeadmNamespace, kubeadmConfig)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
		return nil, "", fmt.Errorf("kubernetes: %w: %w: write network.prefixes, the --cluster-cidr of kube-controller-manager", ErrNoNetwork, err)
	case err != nil:
		return nil, "", errors.New("kubernetes: " + c.told(err))
	}
	network, err = podSubnet(config.Data[kubeadmKey])
	if err != nil {
		return nil, "", fmt.Errorf("kubernetes: %w: %s: %w: write network.prefixes, the --cluster-cidr of kube-controller-manager", ErrNoNetwork, where, err)
	}
	return network, "podSubnet in " + where, nil
}

// podSubnet reads kubeadm's ClusterConfiguration.
func podSubnet(text string) (network []netip.Prefix, err error) {
	var config struct {
		Networking struct {
			PodSubnet string `json:"podSubnet"`
		} `json:"networking"`
	}
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		return nil, err
	}
	if config.Networking.PodSubnet == "" {
		return nil, errors.New("it has no networking.podSubnet")
	}
	for word := range strings.SplitSeq(config.Networking.PodSubnet, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(word))
		if err != nil {
			return nil, fmt.Errorf("networking.podSubnet: %w", err)
		}
		network = append(network, p.Masked())
	}
	return network, nil
}
