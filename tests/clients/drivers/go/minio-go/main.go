// minio-go, the client that MinIO's own tools and many in Go are built on.
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"drivers/serve"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

var (
	ctx    = context.Background()
	client = open()
)

type question = serve.Question
type told = serve.Told

func open() *minio.Client {
	client, err := minio.New(strings.TrimPrefix(os.Getenv("MATRIX_ENDPOINT"), "http://"), &minio.Options{
		Creds:  credentials.NewStaticV4(os.Getenv("MATRIX_ACCESS_KEY"), os.Getenv("MATRIX_SECRET_KEY"), ""),
		Region: "us-east-1", BucketLookup: minio.BucketLookupPath,
	})
	if err != nil {
		panic(err)
	}
	return client
}

func main() {
	serve.Run(map[string]func(question) (told, error){
		"put": func(q question) (told, error) { return put(q, minio.PutObjectOptions{}) },
		"multipart": func(q question) (told, error) {
			return put(q, minio.PutObjectOptions{PartSize: uint64(q.PartBytes)})
		},
		"put_stream":    func(q question) (told, error) { return stream(q, 0) },
		"give_up":       func(q question) (told, error) { return stream(q, 12<<20) },
		"get":           get,
		"range":         getRange,
		"head":          head,
		"list":          list,
		"list_folder":   listFolder,
		"copy":          copyObject,
		"put_if_absent": putIfAbsent,
		"put_if_match":  putIfMatch,
		"delete": func(q question) (told, error) {
			return nil, client.RemoveObject(ctx, q.Bucket, q.Key, minio.RemoveObjectOptions{})
		},
		"delete_many": deleteMany,
		"delete_some": deleteMany,
		"abort": func(q question) (told, error) {
			return nil, client.RemoveIncompleteUpload(ctx, q.Bucket, q.Key)
		},
		"presign_get": func(q question) (told, error) {
			return signed(client.PresignedGetObject(ctx, q.Bucket, q.Key, lasting(q), nil))
		},
		"presign_put": func(q question) (told, error) {
			return signed(client.PresignedPutObject(ctx, q.Bucket, q.Key, lasting(q)))
		},
	}, map[string]string{"odd_names_without": "all", "sync_up": "it copies objects, not trees",
		"copy_if_absent": "copies have no condition on what they replace"}, kind)
}

func put(q question, options minio.PutObjectOptions) (told, error) {
	return etag(client.FPutObject(ctx, q.Bucket, q.Key, q.File, options))
}

func putIfAbsent(q question) (told, error) {
	options := minio.PutObjectOptions{}
	options.SetMatchETagExcept("*")
	return put(q, options)
}

func putIfMatch(q question) (told, error) {
	options := minio.PutObjectOptions{}
	options.SetMatchETag(strings.Trim(q.Etag, `"`))
	return put(q, options)
}

func stream(q question, failAfter int64) (told, error) {
	source, err := serve.Open(q.File, failAfter)
	if err != nil {
		return nil, err
	}
	return etag(client.PutObject(ctx, q.Bucket, q.Key, source, -1, minio.PutObjectOptions{PartSize: 5 << 20}))
}

func etag(done minio.UploadInfo, err error) (told, error) {
	return told{"etag": done.ETag}, err
}

func get(q question) (told, error) {
	return nil, client.FGetObject(ctx, q.Bucket, q.Key, q.To, minio.GetObjectOptions{})
}

func getRange(q question) (told, error) {
	options := minio.GetObjectOptions{}
	if err := options.SetRange(q.Offset, q.Offset+q.Length-1); err != nil {
		return nil, err
	}
	got, err := client.GetObject(ctx, q.Bucket, q.Key, options)
	if err != nil {
		return nil, err
	}
	return nil, serve.Save(q.To, got)
}

func head(q question) (told, error) {
	got, err := client.StatObject(ctx, q.Bucket, q.Key, minio.StatObjectOptions{})
	return told{"size": got.Size, "etag": got.ETag}, err
}

func list(q question) (told, error) {
	keys := []string{}
	options := minio.ListObjectsOptions{Prefix: q.Prefix, Recursive: true, MaxKeys: int(q.Page)}
	for entry := range client.ListObjects(ctx, q.Bucket, options) {
		if entry.Err != nil {
			return nil, entry.Err
		}
		keys = append(keys, entry.Key)
	}
	return told{"keys": keys}, nil
}

func listFolder(q question) (told, error) {
	keys, folders := []string{}, []string{}
	for entry := range client.ListObjects(ctx, q.Bucket, minio.ListObjectsOptions{Prefix: q.Prefix}) {
		if entry.Err != nil {
			return nil, entry.Err
		}
		if strings.HasSuffix(entry.Key, "/") {
			folders = append(folders, entry.Key)
		} else {
			keys = append(keys, entry.Key)
		}
	}
	return told{"keys": keys, "folders": folders}, nil
}

func copyObject(q question) (told, error) {
	_, err := client.CopyObject(ctx, minio.CopyDestOptions{Bucket: q.Bucket, Object: q.To},
		minio.CopySrcOptions{Bucket: q.Bucket, Object: q.Key})
	return nil, err
}

func deleteMany(q question) (told, error) {
	objects := make(chan minio.ObjectInfo, len(q.Keys))
	for _, key := range q.Keys {
		objects <- minio.ObjectInfo{Key: key}
	}
	close(objects)
	var first error
	for failed := range client.RemoveObjects(ctx, q.Bucket, objects, minio.RemoveObjectsOptions{}) {
		first = fmt.Errorf("%s: %w", failed.ObjectName, failed.Err)
	}
	return nil, first
}

func lasting(q question) time.Duration {
	return time.Duration(q.Seconds) * time.Second
}

func signed(url *url.URL, err error) (told, error) {
	if err != nil {
		return nil, err
	}
	return told{"url": url.String()}, nil
}

func kind(err error) string {
	return map[string]string{"NoSuchKey": "missing", "PreconditionFailed": "precondition"}[minio.ToErrorResponse(err).Code]
}
