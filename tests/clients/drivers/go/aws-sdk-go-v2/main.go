// The AWS SDK for Go, version 2.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"drivers/serve"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

var (
	ctx    = context.Background()
	client = s3.New(s3.Options{
		BaseEndpoint: aws.String(os.Getenv("MATRIX_ENDPOINT")),
		Region:       "us-east-1",
		UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(
			os.Getenv("MATRIX_ACCESS_KEY"), os.Getenv("MATRIX_SECRET_KEY"), ""),
	})
	presigner = s3.NewPresignClient(client)
)

type question = serve.Question
type told = serve.Told

func main() {
	serve.Run(map[string]func(question) (told, error){
		"put":        func(q question) (told, error) { return upload(q, 0, 0) },
		"put_stream": func(q question) (told, error) { return upload(q, 0, 0) },
		"multipart":  func(q question) (told, error) { return upload(q, q.PartBytes, 0) },
		"give_up":    func(q question) (told, error) { return upload(q, 0, 18<<20) },
		"get":        func(q question) (told, error) { return get(q, nil) },
		"range": func(q question) (told, error) {
			return get(q, aws.String(fmt.Sprintf("bytes=%d-%d", q.Offset, q.Offset+q.Length-1)))
		},
		"head":           head,
		"list":           list,
		"list_folder":    listFolder,
		"copy":           func(q question) (told, error) { return copyObject(q, nil) },
		"copy_if_absent": func(q question) (told, error) { return copyObject(q, aws.String("*")) },
		"put_if_absent":  func(q question) (told, error) { return put(q, &s3.PutObjectInput{IfNoneMatch: aws.String("*")}) },
		"put_if_match":   func(q question) (told, error) { return put(q, &s3.PutObjectInput{IfMatch: aws.String(q.Etag)}) },
		"delete":         deleteObject,
		"delete_many":    deleteMany,
		"delete_some":    deleteMany,
		"abort":          abort,
		"presign_get":    presignGet,
		"presign_put":    presignPut,
	}, map[string]string{"odd_names_without": "all", "sync_up": "it copies objects, not trees"}, kind)
}

// upload has the transfer manager send a source whose length it does not know.
func upload(q question, partBytes, failAfter int64) (told, error) {
	source, err := serve.Open(q.File, failAfter)
	if err != nil {
		return nil, err
	}
	manager := transfermanager.New(client, func(options *transfermanager.Options) {
		if partBytes > 0 {
			options.PartSizeBytes, options.MultipartUploadThreshold = partBytes, partBytes
		}
	})
	done, err := manager.UploadObject(ctx, &transfermanager.UploadObjectInput{
		Bucket: &q.Bucket, Key: &q.Key, Body: source})
	if err != nil {
		return nil, err
	}
	return told{"etag": aws.ToString(done.ETag)}, nil
}

func put(q question, input *s3.PutObjectInput) (told, error) {
	content, err := os.ReadFile(q.File)
	if err != nil {
		return nil, err
	}
	input.Bucket, input.Key, input.Body = &q.Bucket, &q.Key, bytes.NewReader(content)
	done, err := client.PutObject(ctx, input)
	if err != nil {
		return nil, err
	}
	return told{"etag": *done.ETag}, nil
}

func get(q question, of *string) (told, error) {
	got, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &q.Bucket, Key: &q.Key, Range: of})
	if err != nil {
		return nil, err
	}
	return nil, serve.Save(q.To, got.Body)
}

func head(q question) (told, error) {
	got, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &q.Bucket, Key: &q.Key})
	if err != nil {
		return nil, err
	}
	return told{"size": *got.ContentLength, "etag": *got.ETag}, nil
}

func list(q question) (told, error) {
	keys := []string{}
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{
		Bucket: &q.Bucket, Prefix: &q.Prefix, MaxKeys: aws.Int32(int32(q.Page))})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, entry := range page.Contents {
			keys = append(keys, *entry.Key)
		}
	}
	return told{"keys": keys}, nil
}

func listFolder(q question) (told, error) {
	page, err := client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: &q.Bucket, Prefix: &q.Prefix, Delimiter: aws.String("/")})
	if err != nil {
		return nil, err
	}
	keys, folders := []string{}, []string{}
	for _, entry := range page.Contents {
		keys = append(keys, *entry.Key)
	}
	for _, entry := range page.CommonPrefixes {
		folders = append(folders, *entry.Prefix)
	}
	return told{"keys": keys, "folders": folders}, nil
}

func copyObject(q question, ifNoneMatch *string) (told, error) {
	// The header is the caller's to encode.
	source := q.Bucket + "/" + strings.ReplaceAll(url.PathEscape(q.Key), "%2F", "/")
	_, err := client.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &q.Bucket, Key: &q.To, CopySource: &source,
		IfNoneMatch: ifNoneMatch})
	return nil, err
}

func deleteObject(q question) (told, error) {
	_, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &q.Bucket, Key: &q.Key})
	return nil, err
}

func deleteMany(q question) (told, error) {
	what := &types.Delete{}
	for _, key := range q.Keys {
		what.Objects = append(what.Objects, types.ObjectIdentifier{Key: aws.String(key)})
	}
	done, err := client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &q.Bucket, Delete: what})
	if err != nil {
		return nil, err
	}
	deleted := []string{}
	for _, entry := range done.Deleted {
		deleted = append(deleted, *entry.Key)
	}
	slices.Sort(deleted)
	slices.Sort(q.Keys)
	if len(done.Errors) > 0 || !slices.Equal(deleted, q.Keys) {
		return nil, fmt.Errorf("%v %q", done.Errors, deleted)
	}
	return nil, nil
}

func abort(q question) (told, error) {
	found, err := client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &q.Bucket})
	if err != nil {
		return nil, err
	}
	if len(found.Uploads) != 1 || *found.Uploads[0].Key != q.Key || *found.Uploads[0].UploadId != q.Upload {
		return nil, fmt.Errorf("%v", found.Uploads)
	}
	_, err = client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
		Bucket: &q.Bucket, Key: &q.Key, UploadId: &q.Upload})
	return nil, err
}

func presignGet(q question) (told, error) {
	signed, err := presigner.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &q.Bucket, Key: &q.Key}, lasting(q))
	if err != nil {
		return nil, err
	}
	return told{"url": signed.URL}, nil
}

func presignPut(q question) (told, error) {
	signed, err := presigner.PresignPutObject(ctx, &s3.PutObjectInput{Bucket: &q.Bucket, Key: &q.Key}, lasting(q))
	if err != nil {
		return nil, err
	}
	return told{"url": signed.URL}, nil
}

func lasting(q question) func(*s3.PresignOptions) {
	return s3.WithPresignExpires(time.Duration(q.Seconds) * time.Second)
}

func kind(err error) string {
	var told smithy.APIError
	if !errors.As(err, &told) {
		return ""
	}
	kinds := map[string]string{"NoSuchKey": "missing", "NotFound": "missing", "PreconditionFailed": "precondition"}
	return kinds[told.ErrorCode()]
}
