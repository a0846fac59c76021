// PouchDB's packages ship no types, and @types/pouchdb-core declares the DOM's globals and a Buffer of its
// own for the whole project. Each room that owns a part of PouchDB types what it calls.
declare module 'pouchdb-core' { const value: unknown; export default value }
declare module 'pouchdb-adapter-leveldb' { const value: unknown; export default value }
declare module 'pouchdb-adapter-http' { const value: unknown; export default value }
declare module 'pouchdb-replication' { const value: unknown; export default value }
