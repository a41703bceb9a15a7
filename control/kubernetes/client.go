package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"weft/internal/secretfile"
)

const (
	// dialTimeout bounds one connection attempt, requestTimeout a request about one node, listTimeout
	// one about all of them.
	dialTimeout    = 3 * time.Second
	requestTimeout = 5 * time.Second
	listTimeout    = 60 * time.Second
	// pageSize is how many nodes one answer has at most.
	pageSize = 250
	// manager is the owner of the fields that are written.
	manager = "weft"
)

// client asks for nodes, and for nothing else: the whole clientset would be several times its size.
type client struct {
	rest   *rest.RESTClient
	codec  runtime.ParameterCodec
	server string // URL, for messages
	http   *http.Client
	config *rest.Config
}

// dial makes a client. It connects to nothing; an error is one of the settings.
func dial(s Settings) (*client, error) {
	config, err := rest.InClusterConfig()
	if s.Kubeconfig != "" {
		config, err = readKubeconfig(s.Kubeconfig)
	}
	switch {
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("kubernetes: this is not a pod with a service account: set control.kubernetes.kubeconfig to a file that names the API server")
	case err != nil:
		return nil, fmt.Errorf("kubernetes: control.kubernetes.kubeconfig: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	// Nodes are large, and come less so and cheaper to read than as JSON.
	config.AcceptContentTypes, config.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/json"
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 10 * time.Second}
	config.Dial = dialer.DialContext
	if s.Kubeconfig == "" {
		config.Dial = dialEither(dialer, func() string { return direct(s.Server, DirectFile) })
	} else if s.Server != "" {
		config.Dial = dialEither(dialer, func() string { return s.Server })
	}
	config.UserAgent, config.WarningHandler = manager, rest.NoWarnings{}
	config.QPS = -1 // the requests are few, and paced where they are made
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: control.kubernetes.kubeconfig: %w", err)
	}
	r, err := rest.RESTClientForConfigAndClient(config, h)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: control.kubernetes.kubeconfig: %w", err)
	}
	return &client{rest: r, codec: runtime.NewParameterCodec(scheme), server: config.Host, http: h, config: config}, nil
}

// readKubeconfig reads a file that others may read where there is no secret in it.
func readKubeconfig(file string) (*rest.Config, error) {
	if _, err := secretfile.ReadUnlessSecret(file, 1<<20, holdsSecret); err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err == nil && config.KeyFile != "" {
		_, err = secretfile.Read(config.KeyFile, 1<<20)
	}
	return config, err
}

// holdsSecret says whether who reads a kubeconfig could do what its users may.
func holdsSecret(kubeconfig []byte) bool {
	config, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return true
	}
	for _, user := range config.AuthInfos {
		if user.Token != "" || user.Password != "" || len(user.ClientKeyData) > 0 {
			return true
		}
	}
	return false
}

func (c *client) close() { c.http.CloseIdleConnections() }

// apply makes the node carry exactly these of the annotations that this manager may own.
func (c *client) apply(ctx context.Context, node string, annotations map[string]string, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": node, "annotations": annotations},
	})
	if err != nil {
		return err
	}
	return c.rest.Patch(types.ApplyYAMLPatchType).Resource("nodes").Name(node).SubResource("status").
		Param("fieldManager", manager).Param("force", fmt.Sprint(force)).Body(body).Do(ctx).Error()
}

// setNetwork sets the one condition of the node that says whether its network is there.
func (c *client) setNetwork(ctx context.Context, node string, is condition) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	now := metav1.Now()
	status, message := corev1.ConditionFalse, "weft carries this node's traffic"
	if is == down {
		status, message = corev1.ConditionTrue, "weft does not carry this node's traffic: `weft status` there says why"
	}
	body, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeNetworkUnavailable, Status: status, Reason: string(is), Message: message,
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}}})
	if err != nil {
		return err
	}
	return c.rest.Patch(types.StrategicMergePatchType).Resource("nodes").Name(node).SubResource("status").
		Param("fieldManager", manager).Body(body).Do(ctx).Error()
}

// ask gets one node out of the server's cache, to know that the server is there.
func (c *client) ask(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := c.rest.Get().Resource("nodes").Name(node).Param("resourceVersion", "0").Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// told says an error in words that name a remedy.
func (c *client) told(err error) string {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("the API server %s refuses this node: %v: grant get, list, watch of nodes and patch of nodes/status (deploy/kubernetes/weft.yaml)", c.server, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the API server %s does not know this node: %v: correct the credentials in control.kubernetes.kubeconfig", c.server, err)
	}
	return fmt.Sprintf("the API server %s does not answer: %v: start it, or correct control.kubernetes.kubeconfig", c.server, err)
}

// refused says that the server answered, and that it is not for us.
func refused(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }

// listWatch is what a reflector reads one kind of object from; on the way it tells how the server is.
type listWatch struct {
	heard func(context.Context, error)
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
	thin  func(runtime.Object) runtime.Object // a copy of what is looked at
}

// follow is a listWatch of the objects of a resource of the core's, as many as the field selector lets through.
func (c *client) follow(resource, fields string, list func() runtime.Object, thin func(runtime.Object) runtime.Object, heard func(context.Context, error)) listWatch {
	return listWatch{heard: heard, thin: thin,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			page := list()
			o.FieldSelector = fields
			return page, c.rest.Get().Resource(resource).VersionedParams(&o, c.codec).Do(ctx).Into(page)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fields
			return c.rest.Get().Resource(resource).VersionedParams(&o, c.codec).Watch(ctx)
		}}
}

func (l listWatch) List(o metav1.ListOptions) (runtime.Object, error) {
	return l.ListWithContext(context.Background(), o)
}

func (l listWatch) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return l.WatchWithContext(context.Background(), o)
}

// ListWithContext lists objects, as far as they are looked at. It asks for a page at a time, since thousands of whole objects
// would take hundreds of megabytes: so it is with servers that cannot stream the list.
func (l listWatch) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	all := &metav1.List{}
	// The newest, always: with a limit, a server that is told a version gives that very one (the reflector's last, which is old once a watch from
	// it has failed: it would be told the same for as long as the store keeps it), and with "0" it pays no regard to the limit.
	o.Limit, o.ResourceVersion, o.ResourceVersionMatch = pageSize, "", ""
	for {
		page, err := l.list(ctx, o)
		l.heard(ctx, err)
		if err != nil {
			return nil, err
		}
		err = meta.EachListItem(page, func(item runtime.Object) error {
			all.Items = append(all.Items, runtime.RawExtension{Object: l.thin(item)})
			return nil
		})
		if err != nil {
			return nil, err
		}
		about, err := meta.ListAccessor(page)
		if err != nil {
			return nil, err
		}
		all.ResourceVersion = about.GetResourceVersion() // the same for all pages
		if about.GetContinue() == "" {
			return all, nil
		}
		o.Continue, o.ResourceVersion, o.ResourceVersionMatch = about.GetContinue(), "", ""
	}
}

// WatchWithContext watches objects.
func (l listWatch) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	w, err := l.watch(ctx, o)
	if apierrors.IsInvalid(err) { // a server that cannot stream the list; it is asked in another way next
		return w, err
	}
	l.heard(ctx, err)
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		if e.Type != watch.Error {
			l.heard(ctx, nil)
		}
		return e, true
	}), nil
}
