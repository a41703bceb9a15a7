package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// entries are the contents of a tar archive by name; modes, owners and dates have to be those of images.
func entries(t *testing.T, data []byte) (files map[string]string, headers map[string]*tar.Header) {
	t.Helper()
	files, headers = map[string]string{}, map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name], headers[h.Name] = string(content), h
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 1e9 {
			t.Errorf("%s: %+v", h.Name, h)
		}
	}
}

// tree writes what an image is made of; nothing that a file system adds may matter.
func tree(t *testing.T, when time.Time, umask os.FileMode) string {
	t.Helper()
	root := t.TempDir()
	for name, f := range map[string]struct {
		data []byte
		mode os.FileMode
	}{"usr/local/bin/weft": {[]byte("\x7fELF, not really"), 0o755}, "etc/passwd": {[]byte("root\n"), 0o644}} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.data, f.mode), os.Chmod(path, f.mode&^umask), os.Chtimes(path, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "usr/share/sbom"), 0o755), os.Symlink("../run", filepath.Join(root, "run-too"))); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestArchive(t *testing.T) {
	t.Parallel()
	o := options{name: "weft", tags: []string{"v1", "latest"}, version: "v1", revision: "abc", entry: "/usr/local/bin/weft", created: time.Unix(1e9, 0).UTC(), out: t.TempDir()}
	again := o
	again.out = t.TempDir()
	first, second := tree(t, time.Unix(5, 0), 0), tree(t, time.Unix(1e9, 7), 0o077)
	if err := errors.Join(run(o, []string{"amd64=" + first, "arm64=" + second}), run(again, []string{"amd64=" + second, "arm64=" + first})); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"weft-v1-amd64.tar", "weft-v1-arm64.tar", "weft-v1.tar", "weft-v1-amd64.spdx.json"} {
		a, err := os.ReadFile(filepath.Join(o.out, name))
		b, err2 := os.ReadFile(filepath.Join(again.out, name))
		if err != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs from one made of the same files: %v, %v", name, err, err2)
		}
	}

	data, err := os.ReadFile(filepath.Join(o.out, "weft-v1.tar"))
	if err != nil {
		t.Fatal(err)
	}
	files, _ := entries(t, data)
	var docker []struct {
		Config           string
		RepoTags, Layers []string
	}
	decode(t, files["manifest.json"], &docker)
	if len(docker) != 1 || !slices.Equal(docker[0].RepoTags, []string{"weft:v1", "weft:latest"}) || files[docker[0].Config] == "" || files[docker[0].Layers[0]] == "" {
		t.Errorf("for docker load: %+v", docker)
	}
	type index struct {
		MediaType string
		Manifests []descriptor
	}
	var top, platforms index
	decode(t, files["index.json"], &top)
	if len(top.Manifests) != 2 || top.Manifests[1].Annotations["io.containerd.image.name"] != "docker.io/library/weft:latest" {
		t.Fatalf("index.json: %+v", top)
	}
	blobOf := func(d descriptor) string {
		t.Helper()
		text := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if len(text) != d.Size || "sha256:"+newBlob([]byte(text)).digest != d.Digest {
			t.Fatalf("%+v is not what it says", d)
		}
		return text
	}
	decode(t, blobOf(top.Manifests[0]), &platforms)
	var seen []string
	for _, m := range platforms.Manifests {
		seen = append(seen, m.Platform.Architecture)
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		decode(t, blobOf(m), &manifest)
		var config struct {
			Architecture string
			Config       struct {
				Entrypoint []string
				Labels     map[string]string
			}
			RootFS struct {
				Diff []string `json:"diff_ids"`
			}
		}
		decode(t, blobOf(manifest.Config), &config)
		if config.Architecture != m.Platform.Architecture || config.Config.Labels["org.opencontainers.image.revision"] != "abc" || config.Config.Entrypoint[0] != "/usr/local/bin/weft" {
			t.Errorf("config: %+v", config)
		}
		z, err := gzip.NewReader(strings.NewReader(blobOf(manifest.Layers[0])))
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(z)
		if err != nil || "sha256:"+newBlob(content).digest != config.RootFS.Diff[0] {
			t.Errorf("the layer is not that of the config: %v", err)
		}
		inside, headers := entries(t, content)
		if headers["usr/local/bin/weft"].Mode != 0o755 || headers["etc/passwd"].Mode != 0o644 || headers["run-too"].Linkname != "../run" {
			t.Errorf("%+v", headers)
		}
		if list := inside[sbomPath]; !strings.Contains(list, "SPDX-2.3") {
			t.Errorf("the list of what is in it: %s", list)
		}
	}
	if !slices.Equal(seen, []string{"amd64", "arm64"}) {
		t.Errorf("platforms %v", seen)
	}
}

// The list of what is in it names what a Go program is made of: this one.
func TestSBOM(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.Symlink(os.Args[0], filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	o := options{version: "v1", created: time.Unix(1e9, 0).UTC()}
	if list, err := o.sbom("amd64", root); err != nil || strings.Contains(string(list), runtime.Version()) {
		t.Errorf("a link is listed: %s, %v", list, err)
	}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "program"), self, 0o755); err != nil {
		t.Fatal(err)
	}
	list, err := o.sbom("amd64", root)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Packages []struct {
			Name, VersionInfo string
		}
		Relationships []struct{ SPDXElementID, RelationshipType, RelatedSPDXElement string }
	}
	decode(t, string(list), &doc)
	names := map[string]string{}
	for _, p := range doc.Packages {
		names[p.Name] = p.VersionInfo
	}
	if names["stdlib"] != runtime.Version() || names["program"] != "v1" || len(doc.Relationships) < 2 {
		t.Errorf("%s", list)
	}
}

func TestReference(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"weft": "docker.io/library/weft:1", "me/weft": "docker.io/me/weft:1", "quay.example/me/weft": "quay.example/me/weft:1", "localhost/weft": "localhost/weft:1",
		"reg:5000/weft": "reg:5000/weft:1",
	} {
		if got := (options{name: name}).reference("1"); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
