package blobs

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"dsas"
)

// How a release is written in OCI's terms (image specification 1.1): an image
// whose config names the role and, by the digests of their plain content, the
// kernel and initramfs it boots with, and an artifact with these two, which the
// image's manifest points to. So any container tool takes the image, and the
// config's digest is the same however layers and initramfs are compressed.
const (
	labelRole   = dsas.AnnotationRole
	labelKernel = dsas.AnnotationKernel
	labelMemory = dsas.AnnotationMemory
	labelBoot   = dsas.LabelBoot
	labelDefine = dsas.LabelDefinition

	noteBoot     = dsas.AnnotationBoot
	noteTitle    = dsas.AnnotationTitle
	noteUnpacked = dsas.AnnotationUnpacked
	noteDiffID   = dsas.AnnotationDiffID
	noteRelease  = "dsas.release" // of a line of the index: digest of the image's config
	noteGoing    = "dsas.going"   // of a line of the index: a GC is about to remove it
	noteNumber   = "dsas.number." // of the index, and the role: the last number given
	noteRef      = "org.opencontainers.image.ref.name"
	noteCreated  = "org.opencontainers.image.created"

	bootArtifact = dsas.BootArtifact
	emptyMedia   = types.MediaType("application/vnd.oci.empty.v1+json")
	architecture = "amd64"
	ociSchema    = 2
	maxLayers    = 127 // about where overlayfs and Docker stop
)

// epoch stands in an image's config for the time of the build: two builds of the
// same are the same.
var epoch = time.Unix(1704067200, 0).UTC()

// describe is a part as a manifest's layer.
func describe(p dsas.Part) (v1.Descriptor, error) {
	h, err := v1.NewHash(string(p.Digest))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("part %q: %w: %w", p.Title, err, dsas.ErrInvalid)
	}
	d := v1.Descriptor{MediaType: types.MediaType(p.MediaType), Size: p.Size, Digest: h, Annotations: map[string]string{}}
	if p.Title != "" {
		d.Annotations[noteTitle] = p.Title
	}
	if p.Unpacked > 0 {
		d.Annotations[noteUnpacked] = strconv.FormatInt(p.Unpacked, 10)
	}
	if len(d.Annotations) == 0 {
		d.Annotations = nil
	}
	return d, nil
}

// partOf reads a layer back; its DiffID stands elsewhere.
func partOf(d v1.Descriptor) dsas.Part {
	n, _ := strconv.ParseInt(d.Annotations[noteUnpacked], 10, 64) // a foreign image's layers say nothing
	return dsas.Part{
		Digest: dsas.Digest(d.Digest.String()), Size: d.Size, MediaType: string(d.MediaType),
		Title: d.Annotations[noteTitle], Unpacked: max(n, 0),
	}
}

// bootManifest writes a boot set as an OCI artifact, which dsas.ParseBootManifest
// reads.
func bootManifest(b dsas.BootSet, config v1.Descriptor) ([]byte, error) {
	m := v1.Manifest{
		SchemaVersion: ociSchema, MediaType: types.OCIManifestSchema1, ArtifactType: bootArtifact, Config: config,
		Annotations: map[string]string{labelKernel: b.Release},
	}
	if len(b.Keys) > 0 {
		m.Annotations[dsas.AnnotationKeys] = strings.Join(b.Keys, " ")
	}
	for _, p := range b.Parts() {
		d, err := describe(p)
		if err != nil {
			return nil, err
		}
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[noteDiffID] = string(p.DiffID)
		m.Layers = append(m.Layers, d)
	}
	return json.Marshal(m)
}

// imageConfig writes what fixes a release.
func imageConfig(r dsas.Release) ([]byte, error) {
	c := v1.ConfigFile{
		Architecture: architecture, OS: "linux", Created: v1.Time{Time: epoch}, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Labels: map[string]string{labelRole: r.Role, labelKernel: r.Manifest.Kernel}},
	}
	if r.Manifest.Memory > 0 {
		c.Config.Labels[labelMemory] = strconv.FormatInt(r.Manifest.Memory, 10)
	}
	if len(r.Definition) > 0 {
		c.Config.Labels[labelDefine] = base64.StdEncoding.EncodeToString(r.Definition)
	}
	for _, p := range r.Boot.Parts() {
		if _, err := dsas.ParseDigest(string(p.DiffID)); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Title, err)
		}
		c.Config.Labels[labelBoot+p.Title] = string(p.DiffID)
	}
	for _, p := range r.Manifest.Parts {
		h, err := v1.NewHash(string(p.DiffID))
		if err != nil {
			return nil, fmt.Errorf("part %q: diffID: %w: %w", p.Title, err, dsas.ErrInvalid)
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, h)
		c.History = append(c.History, v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "dsas image build: " + p.Title})
	}
	return json.Marshal(c)
}

// imageManifest writes one rendition of a release.
func imageManifest(r dsas.Release, config v1.Descriptor) ([]byte, error) {
	m := v1.Manifest{
		SchemaVersion: ociSchema, MediaType: types.OCIManifestSchema1, Config: config,
		Annotations: map[string]string{labelRole: r.Role, labelKernel: r.Manifest.Kernel, noteBoot: string(r.Boot.Digest)},
	}
	if r.Manifest.Memory > 0 { // nodes do not read the config
		m.Annotations[labelMemory] = strconv.FormatInt(r.Manifest.Memory, 10)
	}
	for _, p := range r.Manifest.Parts {
		d, err := describe(p)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, d)
	}
	return json.Marshal(m)
}

// parseImage reads an image's manifest and config as a role's manifest.
func parseImage(m *v1.Manifest, c *v1.ConfigFile) (dsas.Manifest, error) {
	out := dsas.Manifest{Role: c.Config.Labels[labelRole], Kernel: c.Config.Labels[labelKernel]}
	out.Memory, _ = strconv.ParseInt(c.Config.Labels[labelMemory], 10, 64)
	if len(m.Layers) == 0 || len(m.Layers) != len(c.RootFS.DiffIDs) || len(m.Layers) > maxLayers {
		return out, fmt.Errorf("an image of %d layers and %d diffIDs: %w", len(m.Layers), len(c.RootFS.DiffIDs), dsas.ErrInvalid)
	}
	for i, d := range m.Layers {
		p := partOf(d)
		p.DiffID = dsas.Digest(c.RootFS.DiffIDs[i].String())
		out.Parts = append(out.Parts, p)
	}
	return out, nil
}
