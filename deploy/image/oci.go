package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// blob is content that is named by its digest.
type blob struct {
	data   []byte
	digest string // SHA-256, hexadecimal
}

func newBlob(data []byte) blob {
	sum := sha256.Sum256(data)
	return blob{data, hex.EncodeToString(sum[:])}
}

func (b blob) path() string { return "blobs/sha256/" + b.digest }

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

func (b blob) descriptor(kind string) descriptor {
	return descriptor{MediaType: kind, Digest: "sha256:" + b.digest, Size: len(b.data)}
}

// encode makes a blob of what cannot fail to be JSON. Keys of maps are sorted.
func encode(v any) blob {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return newBlob(data)
}

// labels are what registries and people read, the same in image and manifest.
func (o options) labels() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "weft",
		"org.opencontainers.image.description": "A packet overlay: the node's daemon, its CNI plugin, and the reference plugins portmap, bandwidth and loopback",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     o.version,
		"org.opencontainers.image.revision":    o.revision,
		"org.opencontainers.image.created":     o.created.Format(time.RFC3339),
	}
}

// build makes the image of a folder, whose files are in it at the same places.
func (o options) build(arch, root string) (*image, error) {
	sbom, err := o.sbom(arch, root)
	if err != nil {
		return nil, err
	}
	content, err := o.layer(root, sbom)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed) // no name and no date in its header
	if _, err := z.Write(content); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	img := &image{arch: arch, layer: newBlob(packed.Bytes()), sbom: sbom}
	img.config = encode(map[string]any{
		"created": o.created.Format(time.RFC3339), "architecture": arch, "os": "linux",
		"config": map[string]any{
			"Entrypoint": []string{o.entry}, "Env": []string{"PATH=/usr/local/bin"}, "Labels": o.labels(), "WorkingDir": "/",
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + newBlob(content).digest}},
		"history": []any{map[string]any{"created": o.created.Format(time.RFC3339), "created_by": "scripts/image"}},
	})
	img.manifest = encode(map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": img.config.descriptor(typeConfig),
		"layers": []descriptor{img.layer.descriptor(typeLayer)}, "annotations": o.labels(),
	})
	return img, nil
}

// sbomPath is where the list of what is in the image is in it.
const sbomPath = "usr/share/sbom/weft.spdx.json"

// layer is a tar archive of the folder, everything root's and of one date, in the order of the names.
func (o options) layer(root string, sbom []byte) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h tar.Header, data []byte) error {
		h.ModTime, h.Size, h.Format = o.created, int64(len(data)), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		switch {
		case err != nil || name == "":
			return err
		case e.IsDir():
			return add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		mode := int64(0o644)
		if info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		return add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, data)
	})
	if err == nil {
		err = add(tar.Header{Typeflag: tar.TypeReg, Name: sbomPath, Mode: 0o644}, sbom)
	}
	if err == nil {
		err = w.Close()
	}
	return out.Bytes(), err
}

// index is what a registry has under the tag: one manifest for each platform.
func (o options) index(all []*image) blob {
	var list []descriptor
	for _, img := range all {
		d := img.manifest.descriptor(typeManifest)
		d.Platform = &platform{img.arch, "linux"}
		list = append(list, d)
	}
	return encode(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": list, "annotations": o.labels()})
}

// reference is a name as containerd wants it whole.
func (o options) reference(tag string) string {
	name := o.name
	first, _, path := strings.Cut(name, "/")
	switch {
	case !path:
		name = "docker.io/library/" + name
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		name = "docker.io/" + name
	}
	return name + ":" + tag
}

// write writes an archive that holds all of these images under each of the tags.
func (o options) write(file string, all []*image) error {
	top := all[0].manifest.descriptor(typeManifest)
	top.Platform = &platform{all[0].arch, "linux"}
	blobs := map[string]blob{}
	for _, img := range all {
		for _, b := range []blob{img.config, img.manifest, img.layer} {
			blobs[b.path()] = b
		}
	}
	if len(all) > 1 {
		index := o.index(all)
		blobs[index.path()], top = index, index.descriptor(typeIndex)
	}
	var tops []descriptor
	var docker []any
	var names []string
	for _, tag := range o.tags {
		d := top
		d.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": o.reference(tag)}
		tops = append(tops, d)
		names = append(names, o.name+":"+tag)
	}
	// Docker takes one platform from an archive of this kind, the first.
	docker = append(docker, map[string]any{"Config": all[0].config.path(), "RepoTags": names, "Layers": []string{all[0].layer.path()}})
	files := map[string][]byte{
		"oci-layout":    []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json":    encode(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": tops}).data,
		"manifest.json": encode(docker).data,
	}
	for path, b := range blobs {
		files[path] = b.data
	}
	return o.archive(file, files)
}
