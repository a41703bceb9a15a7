package main

import (
	"archive/tar"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// archive writes files into a tar archive, in the order of their names.
func (o options) archive(file string, files map[string][]byte) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: o.created}); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: o.created}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(files[name]); err != nil {
			return err
		}
	}
	return w.Close()
}

// sbom lists what the folder's programs are made of, as their own build information says, in SPDX 2.3
// (https://spdx.github.io/spdx-spec/v2.3/).
func (o options) sbom(arch, root string) ([]byte, error) {
	type object = map[string]any
	var packages, relations []object
	seen := map[string]bool{}
	add := func(id, name, version string, more object) {
		if !seen[id] {
			seen[id] = true
			p := object{"SPDXID": id, "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false}
			maps.Copy(p, more)
			packages = append(packages, p)
		}
	}
	related := func(from, kind, to string) {
		relations = append(relations, object{"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil // no Go program
		}
		program := spdxID("program", strings.TrimPrefix(path, root))
		version := info.Main.Version
		if info.Main.Path == "weft" || version == "(devel)" || version == "" {
			version = o.version
		}
		add(program, filepath.Base(path), version, object{"primaryPackagePurpose": "APPLICATION"})
		related("SPDXRef-DOCUMENT", "DESCRIBES", program)
		std := spdxID("go", info.GoVersion)
		add(std, "stdlib", info.GoVersion, nil)
		related(program, "DEPENDS_ON", std)
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			id := spdxID("module", m.Path+"-"+m.Version)
			add(id, m.Path, m.Version, object{"externalRefs": []object{{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
				"referenceLocator": fmt.Sprintf("pkg:golang/%s@%s", m.Path, m.Version)}}})
			related(program, "DEPENDS_ON", id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	byID := func(a, b object) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	slices.SortFunc(packages, byID)
	return json.MarshalIndent(object{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "weft-" + o.version + "-" + arch,
		"documentNamespace": fmt.Sprintf("https://weft.network/spdx/%s/%s/%s", o.version, arch, newBlob(fmt.Append(nil, packages)).digest),
		"creationInfo":      object{"created": o.created.Format(time.RFC3339), "creators": []string{"Tool: weft-deploy-image"}},
		"packages":          packages, "relationships": relations,
	}, "", " ")
}

// spdxID makes an identifier of a name: letters, digits, dots and dashes.
func spdxID(kind, name string) string {
	return "SPDXRef-" + kind + "-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, strings.Trim(name, "/"))
}
